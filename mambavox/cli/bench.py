"""``mambavox bench``: an operation beside its peers on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from mambavox.cli.console import ERR, OUT


def bench_command(
    operation: Annotated[str, typer.Argument(help="scan, conv, ssd or speed_up")],
    shapes: Annotated[str | None, typer.Option(help="such as S1-500,S2-500 (default: all of the operation)")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="that work (default: as many as torch takes)")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="repetitions, each through all candidates")] = 7,
    passes: Annotated[str, typer.Option(help="of forward, both")] = "forward,both",
    output: Annotated[Path, typer.Option(help="folder of the table, the figures as JSON and the plot")] = Path(
        "runs/bench"
    ),
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    memory: Annotated[bool, typer.Option(help="also measure peak memory, each time in a new process")] = True,
) -> None:
    """Time an operation beside other libraries, and beside what the machine allows.

    Outputs and gradients are compared with the definition first; on a mismatch no figure is printed. speed_up is a
    language model of transformers as it is and after mambavox.speed_up: float32 on the CPU; of the options it takes
    --threads, --repeats and --output.
    """
    if operation == "speed_up":
        _bench_speed_up(threads, repeats, output)
        return
    from mambavox.benchmarks.benchmark import benchmark

    report = benchmark(
        operation,
        shapes=None if shapes is None else _words(shapes),
        threads=threads,
        repeats=repeats,
        passes=_words(passes),
        dtype=dtype,
        device=device,
        memory=memory,
        console=ERR,
    )
    report.write(output, operation)
    OUT.print(report.markdown(), markup=False)
    OUT.print(f"{operation}.md, {operation}.json and {operation}.png are in {output}", markup=False)


def _bench_speed_up(threads: int | None, repeats: int, output: Path) -> None:
    from mambavox.benchmarks.speed_up import measure_speed_up

    report = measure_speed_up(threads, repeats, console=ERR)
    report.write(output)
    OUT.print(report.markdown(), markup=False)
    OUT.print(f"speed_up.md and speed_up.json are in {output}", markup=False)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
