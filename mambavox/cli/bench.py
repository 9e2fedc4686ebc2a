"""``mambavox bench``: operations beside their peers, and what streaming, training, serving cost on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mambavox import assets
from mambavox.cli.command import Command
from mambavox.cli.console import ERR, OUT, tell_of_no_plots
from mambavox.cli.flags import Device

if TYPE_CHECKING:
    from mambavox.benchmarks.report import Report

bench_app = typer.Typer(
    help="Measure operations beside other libraries, and what streaming, training and serving cost on this machine.",
    no_args_is_help=True,
)

Threads = Annotated[int | None, typer.Option(min=1, help="Threads that work (default: as many as torch takes).")]
OneThread = Annotated[int, typer.Option(min=1, help="Threads that work.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Type of the numbers.")]
Place = Annotated[Device, typer.Option(help="Where to measure; auto takes a GPU if there is one.")]
Output = Annotated[Path, typer.Option(help="Folder of the tables, the figures as JSON and the plots.")]
Model = Annotated[str, typer.Option(help="Run folder of a causal recogniser, or the embedded one.")]
_FOLDER = Path("runs/bench")


def _publish(report: "Report", output: Path, name: str | None = None) -> None:
    *others, last = report.write(output, name)
    OUT.print(report.markdown(), markup=False)
    OUT.print(f"{', '.join(others)} and {last} are in {output}", markup=False)
    tell_of_no_plots()


def _operation_command(operation: str) -> Callable[..., None]:
    def command(
        shapes: Annotated[
            str | None, typer.Option(help="Shapes, such as S1-500,S2-500 (default: all of the operation).")
        ] = None,
        threads: Threads = None,
        repeats: Annotated[int, typer.Option(min=1, help="Repetitions, each through all candidates.")] = 7,
        passes: Annotated[str | None, typer.Option(help="Passes: forward, or both of them (default: both).")] = None,
        output: Output = _FOLDER,
        dtype: Dtype = "float32",
        device: Place = "cpu",
        memory: Annotated[bool, typer.Option(help="Also measure peak memory, each time in a new process.")] = True,
    ) -> None:
        from mambavox.benchmarks.benchmark import benchmark

        report = benchmark(
            operation,
            shapes=_words(shapes),
            threads=threads,
            repeats=repeats,
            **_given(passes=_words(passes)),
            dtype=dtype,
            device=_found(device),
            memory=memory,
            console=ERR,
        )
        _publish(report, output, operation)

    return command


for _name, _what in {
    "scan": "The selective scan of Mamba",
    "conv": "The short causal convolution of Mamba",
    "ssd": "The scan of Mamba-2",
}.items():
    bench_app.command(
        _name,
        cls=Command,
        help=f"{_what} beside other libraries.\n\nOutputs and gradients are compared with the definition first; on a "
        f"mismatch no figure is printed.\n\nExample: mambavox bench {_name} --threads 2",
    )(_operation_command(_name))


@bench_app.command("speed-up", cls=Command)
def speed_up_command(
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions, each through both.")] = 7,
    output: Output = _FOLDER,
) -> None:
    """Measure a language model of transformers as it is and after mambavox.speed_up, in float32 on the CPU.

    Example: mambavox bench speed-up --threads 2
    """
    from mambavox.benchmarks.speed_up import measure_speed_up

    _publish(measure_speed_up(threads, repeats, console=ERR), output)


@bench_app.command("streaming", cls=Command)
def streaming_command(
    sizes: Annotated[
        str | None, typer.Option("--shapes", help="Sizes: nano, small, base, separated by commas (default: base).")
    ] = None,
    encoders: Annotated[str | None, typer.Option(help="Kinds of layers, such as mamba,causal-transformer.")] = None,
    histories: Annotated[str | None, typer.Option(help="Seconds of the past, such as 10,60.")] = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions, each through all models.")] = 7,
    output: Output = _FOLDER,
    dtype: Dtype = "float32",
    device: Place = "cpu",
) -> None:
    """Measure steps of streams of causal Mamba-HuBERTs, and the bytes of their states, by the length of their past.

    Example: mambavox bench streaming --shapes nano --histories 10,60
    """
    from mambavox.benchmarks.streaming import measure_streaming

    given = _given(sizes=_words(sizes), encoders=_words(encoders), histories=_numbers("histories", histories))
    report = measure_streaming(
        threads=threads, repeats=repeats, dtype=dtype, device=_found(device), console=ERR, **given
    )
    _publish(report, output)


@bench_app.command("training", cls=Command)
def training_command(
    size: Annotated[Literal["nano", "small", "base"], typer.Option("--shapes", help="Size of the models.")] = "base",
    encoders: Annotated[
        str | None, typer.Option(help="Kinds of models, such as mamba,transformer,HubertModel.")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Seconds of the recording, such as 10,60.")] = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions, each through all models.")] = 3,
    output: Output = _FOLDER,
    dtype: Dtype = "float32",
    device: Place = "cpu",
) -> None:
    """Measure forward and backward passes of Mamba-HuBERTs and HubertModel by the length of the recording.

    Example: mambavox bench training --lengths 10,20,40
    """
    from mambavox.benchmarks.training import measure_training

    given = _given(encoders=_words(encoders), lengths=_numbers("lengths", lengths))
    report = measure_training(
        size, threads=threads, repeats=repeats, dtype=dtype, device=_found(device), console=ERR, **given
    )
    _publish(report, output)


@bench_app.command("recognition", cls=Command)
def recognition_command(
    model: Model = assets.RECOGNISER,
    blocks: Annotated[str | None, typer.Option("--seconds", help="Seconds of a block, such as 0.16,0.32.")] = None,
    sentences: Annotated[int, typer.Option(min=1, help="Sentences that espeak-ng speaks.")] = 12,
    threads: OneThread = 1,
    output: Output = _FOLDER,
    device: Place = "cpu",
) -> None:
    """Measure how long words wait in a streaming recogniser, by their known times in synthesised sentences.

    Example: mambavox bench recognition --model runs/ctc --seconds 0.16,0.32
    """
    from mambavox.asr.recognizer import SpeechRecognizer
    from mambavox.benchmarks.recognition import measure_recognition

    recognizer = SpeechRecognizer.from_pretrained(model, device=_found(device))
    given = _given(blocks=_numbers("seconds", blocks))
    facts = {"model": model}
    report = measure_recognition(recognizer, sentences=sentences, threads=threads, facts=facts, console=ERR, **given)
    _publish(report, output)


@bench_app.command("long-form", cls=Command)
def long_form_command(
    data: Annotated[Path, typer.Option(help="Folder of recordings, which are joined.")],
    model: Annotated[
        str | None, typer.Option(help="Run folder of a recogniser (default: a nano model with random weights).")
    ] = None,
    encoder: Annotated[str, typer.Option("--encoders", help="Kind of the layers where no model is given.")] = "mamba",
    lengths: Annotated[
        str | None, typer.Option("--seconds", help="Seconds of the recordings, such as 600,10800.")
    ] = None,
    threads: OneThread = 1,
    output: Output = _FOLDER,
    device: Place = "cpu",
) -> None:
    """Measure peak memory and time of `mambavox transcribe` by the length of the recording.

    Example: mambavox bench long-form --data clips --seconds 600,10800
    """
    from mambavox.benchmarks.long_form import measure_long_form

    given = _given(lengths=_numbers("seconds", lengths))
    report = measure_long_form(
        data, model=model, encoder=encoder, threads=threads, device=_found(device), console=ERR, **given
    )
    _publish(report, output)


@bench_app.command("serve", cls=Command)
def serve_bench_command(
    data: Annotated[Path, typer.Option(help="Folder of recordings, which the clients say.")],
    model: Model = assets.RECOGNISER,
    streams: Annotated[int, typer.Option(min=1, help="Clients at a time.")] = 50,
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds that each client speaks.")] = 20.0,
    hostile: Annotated[bool, typer.Option(help="Measure again beside a hostile client.")] = True,
    threads: OneThread = 1,
    output: Output = _FOLDER,
) -> None:
    """Measure `mambavox serve` with many clients at the pace of speech, alone and beside a hostile one.

    Example: mambavox bench serve --data clips --streams 50
    """
    from mambavox.benchmarks.serving import measure_serving

    report = measure_serving(data, model, streams, seconds, threads, hostile, console=ERR)
    _publish(report, output)


def _found(device: str) -> str:
    """The device that is meant, before anything is measured."""
    from mambavox.devices import find_device

    return str(find_device(device))


def _given(**options: Any) -> dict[str, Any]:
    """Those that were given; the others have their defaults where they are used."""
    return {name: value for name, value in options.items() if value is not None}


def _numbers(flag: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise typer.BadParameter(f"--{flag} is {text!r}; expected seconds, such as 10,60,300") from None


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]
