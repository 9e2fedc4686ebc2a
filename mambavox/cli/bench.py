"""``mambavox bench``: an operation beside its peers, or streaming, on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mambavox.cli.console import ERR, OUT


def bench_command(
    operation: Annotated[str, typer.Argument(help="scan, conv, ssd, speed_up, streaming, recognition or long_form")],
    shapes: Annotated[
        str | None,
        typer.Option(help="such as S1-500,S2-500 (default: all of the operation); streaming: nano, small, base"),
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
    encoders: Annotated[
        str | None, typer.Option(help="streaming: such as mamba,causal-transformer; long_form without --model: one")
    ] = None,
    histories: Annotated[str | None, typer.Option(help="streaming: seconds of the past, such as 10,60")] = None,
    model: Annotated[
        str | None, typer.Option(help="recognition and long_form: run folder of `mambavox finetune`, causal")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="long_form: folder of clips, which are joined")] = None,
    seconds: Annotated[
        str | None, typer.Option(help="recognition: of blocks (0.16,0.32,0.64); long_form: of recordings (600,10800)")
    ] = None,
    sentences: Annotated[int, typer.Option(min=1, help="recognition: that are spoken by espeak-ng")] = 12,
) -> None:
    """Time an operation beside other libraries, or steps of streams by the length of their past.

    Outputs (of operations gradients too) are compared with the definition first; on a mismatch no figure is printed.
    speed_up is a language model of transformers as it is and after mambavox.speed_up: float32 on the CPU; of options
    it takes --threads, --repeats and --output. recognition is how long words wait in a streaming recogniser, on
    synthesised sentences; long_form the peak memory and time of `mambavox transcribe` by the length of the recording.
    Both work on one core, unless --threads says otherwise.
    """
    if operation in ("recognition", "long_form"):
        if operation == "recognition":
            _bench_recognition(model, _numbers("seconds", seconds), sentences, threads or 1, device, output)
        else:
            _bench_long_form(data, model, encoders, _numbers("seconds", seconds), threads or 1, device, output)
        return
    if model is not None or data is not None or seconds is not None:
        raise typer.BadParameter(f"--model, --data, --seconds are for recognition and long_form, not for {operation}")
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
        given["histories"] = _numbers("histories", histories)
    report = measure_streaming(threads=threads, repeats=repeats, dtype=dtype, device=device, console=ERR, **given)
    report.write(output)
    OUT.print(report.markdown(), markup=False)
    OUT.print(f"streaming.md, streaming.json and streaming.png are in {output}", markup=False)


def _bench_recognition(
    model: str | None, blocks: list[float] | None, sentences: int, threads: int, device: str, output: Path
) -> None:
    from mambavox.asr.recognizer import SpeechRecognizer
    from mambavox.benchmarks.recognition import BLOCKS, measure_recognition
    from mambavox.training.backbone import quiet_transformers

    if model is None:
        raise typer.BadParameter("bench recognition needs --model, the run folder of a causal recogniser of English")
    with quiet_transformers():
        recognizer = SpeechRecognizer.from_pretrained(model, device=device)
    report = measure_recognition(
        recognizer,
        blocks=blocks or BLOCKS,
        sentences=sentences,
        threads=threads,
        facts={"model": model},
        console=ERR,
    )
    report.write(output)
    OUT.print(report.markdown(), markup=False)
    OUT.print(f"recognition.md and recognition.json are in {output}", markup=False)


def _bench_long_form(
    data: Path | None,
    model: str | None,
    encoders: str | None,
    lengths: list[float] | None,
    threads: int,
    device: str,
    output: Path,
) -> None:
    from mambavox.benchmarks.long_form import LENGTHS, measure_long_form

    if data is None:
        raise typer.BadParameter("bench long_form needs --data, a folder of clips")
    report = measure_long_form(
        data,
        model=model,
        encoder=encoders or "mamba",
        lengths=lengths or LENGTHS,
        threads=threads,
        device=device,
        console=ERR,
    )
    report.write(output)
    OUT.print(report.markdown(), markup=False)
    OUT.print(f"long_form.md and long_form.json are in {output}", markup=False)


def _numbers(flag: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(word) for word in _words(text)]
    except ValueError:
        raise typer.BadParameter(f"--{flag} is {text!r}; expected seconds, such as 10,60,300") from None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
