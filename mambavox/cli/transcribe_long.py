"""``mambavox transcribe`` of recordings too long to be heard as a whole."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mambavox.asr.journal import Journal
from mambavox.asr.live import Endpointing, LiveSegment
from mambavox.asr.long_form import LongFormState, LongFormStream, hear_file, hearing_of
from mambavox.asr.recognizer import Search, SpeechRecognizer
from mambavox.asr.transcript import Transcript, clock, render_segment
from mambavox.cli.console import ERR, OUT
from mambavox.data import AudioSegment, duration
from mambavox.errors import AudioError, DataError

_CHECKPOINT_SECONDS = 10.0  # of work that a kill may cost


@dataclass
class _Unfinished:
    """A recording that is being heard; without a journal it cannot be taken up again."""

    file: Path | AudioSegment
    seconds: float
    stream: LongFormStream
    segments: list[LiveSegment]
    journal: Journal | None


class LongRecordings:
    """Transcribes long recordings block by block, and prints each segment when it has ended.

    Args:
        recognizer: of any CTC model; one that cannot hear blocks exactly hears overlapping chunks, and says so.
        endpointing: when a segment is over.
        search: finds the tokens of a segment.
        settings: all that a transcript depends on beside these; an unfinished one with others begins anew.
        timestamps: print lines of subtitles with their times.
        quiet: print no segments.
    """

    def __init__(
        self,
        recognizer: SpeechRecognizer,
        *,
        endpointing: Endpointing,
        search: Search | None,
        settings: Mapping[str, Any],
        timestamps: bool,
        quiet: bool,
    ) -> None:
        self._recognizer = recognizer
        self._hearing, inexact = hearing_of(recognizer)
        if inexact is not None:
            reason = inexact.partition(". Expected")[0]
            ERR.print(f"longer recordings are heard in overlapping chunks: {reason}", markup=False)
        self._endpointing = endpointing
        self._search = search
        self._settings = {**settings, **asdict(endpointing)}
        self._timestamps = timestamps
        self._quiet = quiet

    def transcribe(self, file: Path | AudioSegment, folder: Path) -> tuple[Transcript, AudioError | None]:
        """Transcribe a recording, from where an interrupted transcription of it was.

        Args:
            file: the recording, or a stretch of one.
            folder: where the journal of the unfinished transcription lies.

        Returns:
            The transcript, a line a segment, and the error behind which the recording cannot be read.

        Raises:
            AudioError: it cannot be read at all.
            OSError: the same.
        """
        work = self._begin(file, folder)
        rate, stream = self._recognizer.sampling_rate, work.stream
        begun, start = stream.samples / rate, time.monotonic()
        failure: AudioError | None = None
        try:
            self._hear(work)
        except AudioError as error:
            if not stream.samples:
                self.forget(file, folder)
                raise
            failure = error
            self._take(work, stream.feed(np.zeros(0, dtype=np.float32), final=True))
        seconds, heard = time.monotonic() - start, stream.samples / rate
        if heard > begun:
            factor = seconds / (heard - begun)
            ERR.print(f"{file}: {heard - begun:.1f} s in {seconds:.1f} s, real-time factor {factor:.3f}", markup=False)
        segments = tuple(segment.to_segment() for segment in work.segments)
        text = "\n".join(segment.text for segment in segments)
        return Transcript(text, segments, heard, self._recognizer.language), failure

    def forget(self, file: Path | AudioSegment, folder: Path) -> None:
        """Remove the journal of a recording whose transcript is written."""
        Journal(_journal_folder(file, folder), {}).remove()

    def _begin(self, file: Path | AudioSegment, folder: Path) -> _Unfinished:
        """Begin a recording, or go on where an interrupted transcription was."""
        seconds, about = duration(file), (file.path if isinstance(file, AudioSegment) else file).stat()
        settings = {**self._settings, "recording": [about.st_size, about.st_mtime_ns]}
        journal = Journal(_journal_folder(file, folder), settings)
        work = _Unfinished(file, seconds, self._stream(), [], journal)
        try:
            segments, state = journal.open()
            discarded = journal.discarded
            try:
                work.stream, work.segments = self._stream(state), segments
            except DataError as error:  # such as of another version
                discarded = str(error)
                journal.begin()
            if discarded is not None:
                ERR.print(f"{file}: begins anew, not where it was interrupted: {discarded}", markup=False)
        except OSError as error:
            ERR.print(f"{file}: cannot be taken up again after an interruption: {error}", markup=False)
            work.journal = None
        if work.stream.samples:
            ERR.print(
                f"{file}: goes on from {clock(work.stream.samples / self._recognizer.sampling_rate)}", markup=False
            )
        self._show(work.segments)
        return work

    def _stream(self, state: LongFormState | None = None) -> LongFormStream:
        return LongFormStream(
            self._recognizer, hearing=self._hearing, endpointing=self._endpointing, search=self._search, state=state
        )

    def _hear(self, work: _Unfinished) -> None:
        """Hear the rest of a recording."""
        rate = self._recognizer.sampling_rate
        begun, start = work.stream.samples / rate, time.monotonic()
        saved = start
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[position]} of {task.fields[length]}  real-time factor {task.fields[factor]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
            length = clock(work.seconds)
            task = bar.add_task(work.file.name, total=work.seconds, position="", length=length, factor="")
            for ended in hear_file(work.stream, work.file, rate):
                self._take(work, ended)
                now, heard = time.monotonic(), work.stream.samples / rate
                if work.journal is not None:
                    work.journal.add(ended)
                    if now - saved >= _CHECKPOINT_SECONDS:
                        saved = now
                        self._save(work, work.journal)
                factor = f"{(now - start) / (heard - begun):.3f}" if heard > begun else ""
                bar.update(task, completed=heard, position=clock(heard), factor=factor)

    def _save(self, work: _Unfinished, journal: Journal) -> None:
        try:
            journal.checkpoint(work.stream.state())
        except OSError as error:
            ERR.print(f"{work.file}: what was heard lately cannot be saved: {error}", markup=False)

    def _take(self, work: _Unfinished, ended: Sequence[LiveSegment]) -> None:
        work.segments += ended
        self._show(ended)

    def _show(self, segments: Sequence[LiveSegment]) -> None:
        for segment in () if self._quiet else segments:
            OUT.print(render_segment(segment.to_segment(), timestamps=self._timestamps), end="", markup=False)


def _journal_folder(file: Path | AudioSegment, folder: Path) -> Path:
    return folder / f".{file.name}.transcript"
