"""``mambavox transcribe`` of recordings too long to be heard as a whole."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mambavox.asr.journal import Journal
from mambavox.asr.live import Endpointing, LiveSegment
from mambavox.asr.long_form import Hearing, LongFormState, LongFormStream, hear_file
from mambavox.asr.recognizer import Search, SpeechRecognizer, Transcript
from mambavox.asr.subtitles import clock, render_segment
from mambavox.cli.console import ERR, OUT
from mambavox.data import duration
from mambavox.errors import AudioError, DataError

_CHECKPOINT_SECONDS = 10.0  # of work that a kill may cost


def transcribe_long(
    file: Path,
    recognizer: SpeechRecognizer,
    hearing: Hearing,
    *,
    endpointing: Endpointing,
    search: Search | None,
    settings: Mapping[str, Any],
    folder: Path,
    timestamps: bool,
    quiet: bool,
) -> tuple[Transcript, AudioError | None]:
    """Transcribe a recording block by block and print each segment when it has ended.

    Args:
        file: the recording.
        recognizer: of the model.
        hearing: how it hears.
        endpointing: when a segment is over.
        search: finds the tokens of a segment.
        settings: all that the transcript depends on beside these.
        folder: where the journal of the unfinished transcription lies.
        timestamps: print lines of subtitles with their times.
        quiet: print no segments.

    Returns:
        The transcript, a line a segment, and the error behind which the recording cannot be read.

    Raises:
        AudioError: it cannot be read at all.
        OSError: the same.
    """
    length = duration(file)
    about = file.stat()
    journal: Journal | None = Journal(
        folder / f".{file.name}.transcript",
        {**settings, **asdict(endpointing), "recording": [about.st_size, about.st_mtime_ns]},
    )
    segments: list[LiveSegment] = []

    def new_stream(state: LongFormState | None = None) -> LongFormStream:
        return LongFormStream(recognizer, hearing=hearing, endpointing=endpointing, search=search, state=state)

    stream = new_stream()
    try:
        assert journal is not None
        segments, state = journal.open()
        discarded = journal.discarded
        try:
            stream = new_stream(state)
        except DataError as error:  # such as of another version
            segments, discarded = [], str(error)
            journal.begin()
        if discarded is not None:
            ERR.print(f"{file}: begins anew, not where it was interrupted: {discarded}", markup=False)
    except OSError as error:
        ERR.print(f"{file}: cannot be taken up again after an interruption: {error}", markup=False)
        journal = None
    rate = recognizer.sampling_rate
    begun = stream.samples / rate
    if begun:
        ERR.print(f"{file}: goes on from {clock(begun, '.')}", markup=False)

    def show(ended: Sequence[LiveSegment]) -> None:
        for segment in ended if not quiet else ():
            OUT.print(render_segment(segment.words, timestamps=timestamps), end="", markup=False)

    show(segments)
    failure: AudioError | None = None
    start = saved = time.monotonic()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[position]} of {task.fields[length]}  real-time factor {task.fields[factor]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        task = bar.add_task(file.name, total=length, position="", length=clock(length, "."), factor="")
        try:
            for ended in hear_file(stream, file, rate):
                segments += ended
                show(ended)
                now, heard = time.monotonic(), stream.samples / rate
                if journal is not None:
                    journal.add(ended)
                    if now - saved >= _CHECKPOINT_SECONDS:
                        saved = now
                        try:
                            journal.checkpoint(stream.state())
                        except OSError as error:
                            ERR.print(f"{file}: what was heard lately cannot be saved: {error}", markup=False)
                factor = f"{(now - start) / (heard - begun):.3f}" if heard > begun else ""
                bar.update(task, completed=heard, position=clock(heard, "."), factor=factor)
        except AudioError as error:
            if not stream.samples:
                forget(file, folder)
                raise
            failure = error
            ended = stream.feed(np.zeros(0, dtype=np.float32), final=True)
            segments += ended
            show(ended)
    seconds, heard = time.monotonic() - start, stream.samples / rate
    if heard > begun:
        ERR.print(
            f"{file}: {heard - begun:.1f} s in {seconds:.1f} s, real-time factor {seconds / (heard - begun):.3f}",
            markup=False,
        )
    words = tuple(word for segment in segments for word in segment.words)
    return Transcript("\n".join(segment.text for segment in segments), words, heard), failure


def forget(file: Path, folder: Path) -> None:
    """Remove the journal of a recording whose transcript is written."""
    Journal(folder / f".{file.name}.transcript", {}).remove()
