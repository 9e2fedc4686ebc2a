"""What a transcription has written so far, in a folder from which a killed one goes on."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambavox.asr.live import LiveSegment
from mambavox.asr.long_form import LongFormState
from mambavox.asr.transcript import Word
from mambavox.errors import DataError
from mambavox.files import write_atomically

_SETTINGS, _SEGMENTS, _STATE = "settings.json", "segments.jsonl", "state.safetensors"


class Journal:
    """A folder that holds an unfinished transcription.

    A checkpoint is whole or not there: segments are on the disk before the state that counts them, and those behind
    it are written again.

    Args:
        folder: made by :meth:`open`.
        settings: all that the transcript depends on, for JSON; with others one begins anew.

    Attributes:
        discarded: why :meth:`open` did not go on from the checkpoint that was there; none where there was none.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.discarded: str | None = None
        self._settings = json.dumps(settings, sort_keys=True, default=str)
        self._length = 0  # bytes of the segments that the last checkpoint counts
        self._new: list[LiveSegment] = []

    def open(self) -> tuple[list[LiveSegment], LongFormState | None]:
        """Read what is there, or begin.

        Returns:
            The segments so far and the state behind them; no state where there is nothing to go on from.

        Raises:
            OSError: the folder cannot be written.
        """
        if (self.folder / _STATE).is_file():
            try:
                return self._read()
            except DataError as error:
                self.discarded = str(error)
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                self.discarded = f"what was saved is damaged ({error})"
        self.begin()
        return [], None

    def begin(self) -> None:
        """Forget what is there and begin.

        Raises:
            OSError: the folder cannot be written.
        """
        self.remove()
        self.folder.mkdir(parents=True)
        write_atomically(self.folder / _SETTINGS, self._settings)
        self._length = 0

    def _read(self) -> tuple[list[LiveSegment], LongFormState]:
        before = json.loads((self.folder / _SETTINGS).read_text(encoding="utf-8"))
        now = json.loads(self._settings)
        others = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if others:
            raise DataError(f"it was begun with another {', another '.join(others)}")
        state = LongFormState.load(self.folder / _STATE)
        lines = (self.folder / _SEGMENTS).read_bytes().splitlines(keepends=True)[: state.segments]
        segments = [_segment(json.loads(line)) for line in lines]
        if len(segments) < state.segments:
            raise DataError(f"what was saved is damaged ({len(segments)} of {state.segments} segments are there)")
        self._length = sum(map(len, lines))
        return segments, state

    def add(self, segments: Sequence[LiveSegment]) -> None:
        """Remember segments until the next checkpoint."""
        self._new += segments

    def checkpoint(self, state: LongFormState) -> None:
        """Write the segments added and the state behind them.

        Raises:
            OSError: they cannot be written; the last checkpoint stays, and the next one holds them, too.
        """
        lines = "".join(json.dumps(segment.to_mapping(), ensure_ascii=False) + "\n" for segment in self._new)
        with (self.folder / _SEGMENTS).open("ab") as file:
            file.truncate(self._length)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
            self._length = file.tell()
        self._new = []
        state.save(self.folder / _STATE)

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _segment(row: Mapping[str, Any]) -> LiveSegment:
    return LiveSegment(row["segment"], tuple(Word(**word) for word in row["words"]), row["final"])
