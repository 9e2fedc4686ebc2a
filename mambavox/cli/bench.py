"""``mambavox bench``: an operation beside its peers, streaming, or a server with many clients, on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mambavox.cli.console import ERR, OUT
from mambavox.cli.serve import embedded_recogniser


def bench_command(
    operation: Annotated[
        str, typer.Argument(help="scan, conv, ssd, speed_up, streaming, training, serve, recognition or long_form")
    ],
    shapes: Annotated[
        str | None,
        typer.Option(
            help="such as S1-500,S2-500 (default: all of the operation); streaming, training: nano, small, base"
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="that work (default: as many as torch takes)")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="repetitions, each through all candidates")] = 7,
    passes: Annotated[str | None, typer.Option(help="of forward, both (default: both of them)")] = None,
    output: Annotated[Path, typer.Option(help="folder of the table, the figures as JSON and the plot")] = Path(
        "runs/bench"
    ),
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    memory: Annotated[bool, typer.Option(help="also measure peak memory, each time in a new process")] = True,
    encoders: Annotated[str | None, typer.Option(help="streaming, training: such as mamba,causal-transformer")] = None,
    histories: Annotated[str | None, typer.Option(help="streaming: seconds of the past, such as 10,60")] = None,
    lengths: Annotated[str | None, typer.Option(help="training: seconds of the recording, such as 10,60")] = None,
    model: Annotated[
        str | None, typer.Option(help="serve: run folder of a causal recogniser (default: the embedded one)")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="serve: folder of recordings, which the clients say")] = None,
    seconds: Annotated[str | None, typer.Option(help="serve: that each client speaks (default: 20)")] = None,
    streams: Annotated[int, typer.Option(min=1, help="serve: clients at a time")] = 50,
    hostile: Annotated[bool, typer.Option(help="serve: measure again beside a hostile client")] = True,
) -> None:
    """Time an operation beside other libraries, steps of streams by the length of their past, or passes of training.

    Outputs (of operations gradients too) are compared with the definition first; on a mismatch no figure is printed.
    speed_up is a language model of transformers as it is and after mambavox.speed_up: float32 on the CPU; of options
    it takes --threads, --repeats and --output. serve is `mambavox serve` with many clients at the pace of speech.
    """
    if lengths is not None and operation != "training":
        raise typer.BadParameter(f"--lengths is for bench training, not for {operation}")
    if operation == "training":
        if passes is not None or histories is not None:
            raise typer.BadParameter("--passes and --histories are not for bench training")
        _bench_training(shapes, encoders, lengths, threads, repeats, dtype, device, output)
        return
    if operation == "serve":
        _bench_serving(data, model, streams, seconds, threads or 1, hostile, output)
        return
    if data is not None or model is not None or seconds is not None:
        raise typer.BadParameter(f"--data, --model and --seconds are for bench serve, not for {operation}")
    if operation == "streaming":
        if passes is not None:
            raise typer.BadParameter("--passes is for operations; a stream has a forward pass only")
        _bench_streaming(shapes, encoders, histories, threads, repeats, dtype, device, output)
        return
    if encoders is not None or histories is not None:
        raise typer.BadParameter(f"--encoders and --histories are for bench streaming, not for {operation}")
    if operation == "speed_up":
        _bench_speed_up(threads, repeats, output)
        return
    from mambavox.benchmarks.benchmark import benchmark

    report = benchmark(
        operation,
        shapes=None if shapes is None else _words(shapes),
        threads=threads,
        repeats=repeats,
        **({} if passes is None else {"passes": _words(passes)}),
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


def _bench_streaming(
    sizes: str | None,
    encoders: str | None,
    histories: str | None,
    threads: int | None,
    repeats: int,
    dtype: str,
    device: str,
    output: Path,
) -> None:
    from mambavox.benchmarks.streaming import measure_streaming

    given: dict[str, Any] = {}
    if sizes is not None:
        given["sizes"] = _words(sizes)
    if encoders is not None:
        given["encoders"] = _words(encoders)
    if histories is not None:
        given["histories"] = _seconds("--histories", histories)
    report = measure_streaming(threads=threads, repeats=repeats, dtype=dtype, device=device, console=ERR, **given)
    report.write(output)
    OUT.print(report.markdown(), markup=False)
    OUT.print(f"streaming.md, streaming.json and streaming.png are in {output}", markup=False)


def _bench_training(
    size: str | None,
    encoders: str | None,
    lengths: str | None,
    threads: int | None,
    repeats: int,
    dtype: str,
    device: str,
    output: Path,
) -> None:
    from mambavox.benchmarks.training import measure_training

    given: dict[str, Any] = {}
    if size is not None:
        given["size"] = size
    if encoders is not None:
        given["encoders"] = _words(encoders)
    if lengths is not None:
        given["lengths"] = _seconds("--lengths", lengths)
    report = measure_training(threads=threads, repeats=repeats, dtype=dtype, device=device, console=ERR, **given)
    report.write(output)
    OUT.print(report.markdown(), markup=False)
    OUT.print(f"training.md, training.json and training.png are in {output}", markup=False)


def _seconds(option: str, text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise typer.BadParameter(f"{option} is {text!r}; expected seconds, such as 10,60,300") from None


def _bench_serving(
    data: Path | None, model: str | None, streams: int, seconds: str | None, threads: int, hostile: bool, output: Path
) -> None:
    from mambavox.benchmarks.serving import measure_serving

    if data is None:
        raise typer.BadParameter("bench serve needs --data, a folder of recordings, which the clients say")
    try:
        spoken = 20.0 if seconds is None else float(seconds)
    except ValueError:
        raise typer.BadParameter(f"--seconds is {seconds!r}; bench serve expects one number") from None
    report = measure_serving(data, model or embedded_recogniser(), streams, spoken, threads, hostile, console=ERR)
    report.write(output)
    OUT.print(report.markdown(), markup=False)
    OUT.print(f"serve.md and serve.json are in {output}", markup=False)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
