"""``mambavox transcribe --microphone``: words as they are spoken."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.live import Live
from rich.text import Text

from mambavox.asr.live import Endpointing, LiveRecognizer, LiveSegment
from mambavox.asr.microphone import Microphone
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.transcript import Transcript, render, render_segment
from mambavox.cli.console import ERR, OUT, print_error, print_json
from mambavox.cli.transcribe_options import TranscribeOptions
from mambavox.errors import AudioError
from mambavox.files import write_atomically


def transcribe_what_is_said(options: TranscribeOptions) -> None:
    """Print or write what is said into the microphone.

    Args:
        options: what was asked for.

    Raises:
        ConfigError: the model cannot be streamed, or the extra ``microphone`` is missing.
        AudioError: there is no microphone.
        typer.Exit: the microphone failed; what was heard before is kept.
    """
    recognizer = SpeechRecognizer.from_pretrained(options.model_name, backbone=options.backbone, device=options.device)
    said, broken = transcribe_microphone(
        recognizer,
        endpointing=Endpointing(options.pause_seconds, options.segment_seconds),
        device=options.device_name,
        timestamps=options.timestamps,
        quiet=options.as_json,
    )
    if options.as_json:
        print_json(said.to_mapping() | ({"error": str(broken)} if broken else {}))
    for form in options.formats:
        path = (options.output or Path()) / f"microphone-{datetime.now():%Y-%m-%d-%H%M%S}.{form}"
        write_atomically(path, render(said, form, timestamps=options.timestamps))
        ERR.print(f"written: {path}", markup=False)
    if broken is not None:
        print_error(f"{broken} What was heard before is kept")
        raise typer.Exit(1)


def transcribe_microphone(
    recognizer: SpeechRecognizer,
    *,
    endpointing: Endpointing,
    device: str | None,
    timestamps: bool,
    quiet: bool,
    open_stream: Callable[..., Any] | None = None,
) -> tuple[Transcript, AudioError | None]:
    """Print what is said until Ctrl-C: on a terminal the words of a sentence as they grow, elsewhere whole ones.

    Args:
        recognizer: of a causal model.
        endpointing: when a sentence is over.
        device: the microphone.
        timestamps: print lines of subtitles with their times.
        quiet: print nothing.
        open_stream: in place of ``sounddevice.InputStream``.

    Returns:
        All that was said, and the error with which the microphone ended, if it was not Ctrl-C.

    Raises:
        ConfigError: the model cannot be streamed, or the extra ``microphone`` is missing.
        AudioError: there is no microphone.
    """
    live = LiveRecognizer(recognizer, endpointing)
    stream = live.open()
    finals: list[LiveSegment] = []
    samples = 0
    growing = OUT.is_terminal and not quiet
    screen: AbstractContextManager[Any] = Live(console=OUT, transient=True) if growing else nullcontext()

    def show(segments: list[LiveSegment], display: Any) -> None:
        for segment in segments:
            if segment.final:
                finals.append(segment)
                if not quiet:
                    OUT.print(render_segment(segment.to_segment(), timestamps=timestamps), end="", markup=False)
            if growing:
                display.update(Text("" if segment.final else segment.text, style="dim"))

    failure: AudioError | None = None
    microphone = Microphone(live.sampling_rate, device=device, open_stream=open_stream)
    with microphone as blocks, screen as display:
        ERR.print("listening; Ctrl-C ends", markup=False)
        try:
            for block in blocks:
                samples += len(block)
                show(live.feed({stream: block})[stream], display)
        except KeyboardInterrupt:
            pass
        except AudioError as error:
            failure = error
        rest = microphone.rest()
        samples += len(rest)
        show(live.feed({stream: rest}, [stream])[stream], display)
    return _transcript(finals, samples / live.sampling_rate, recognizer.language), failure


def _transcript(finals: list[LiveSegment], seconds: float, language: str | None) -> Transcript:
    segments = tuple(segment.to_segment() for segment in finals)
    return Transcript("\n".join(segment.text for segment in segments), segments, seconds, language)
