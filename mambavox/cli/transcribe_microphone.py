"""``mambavox transcribe --microphone``: words as they are spoken."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.live import Live
from rich.text import Text

from mambavox.asr.live import Endpointing, LiveRecognizer, LiveSegment
from mambavox.asr.microphone import Microphone
from mambavox.asr.recognizer import SpeechRecognizer, Transcript
from mambavox.asr.subtitles import render_segment
from mambavox.cli.console import ERR, OUT
from mambavox.errors import AudioError


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
                    OUT.print(render_segment(segment.words, timestamps=timestamps), end="", markup=False)
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
    words = tuple(word for segment in finals for word in segment.words)
    said = Transcript("\n".join(segment.text for segment in finals), words, samples / live.sampling_rate)
    return said, failure
