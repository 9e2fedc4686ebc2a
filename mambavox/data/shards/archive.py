"""Stretches of large files: one open file for many recordings."""

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from mambavox.errors import AudioError

_OPEN = 64  # tars at a time


class _File:
    """An open file, closed once nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class OpenTars:
    """The tars from which was read last, kept open. Threads may share it; another process opens its own.

    Args:
        most: tars that are open at a time.
    """

    def __init__(self, most: int = _OPEN) -> None:
        self.most = most
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._files)

    def read(self, path: Path, start: int, size: int) -> bytes:
        """Some bytes of a tar.

        Args:
            path: of the tar.
            start: first byte.
            size: number of bytes.

        Raises:
            AudioError: the tar cannot be read, or ends before.
        """
        try:
            file = self._open(path)
            content = os.pread(file.number, size, start)
            while len(content) < size and (more := os.pread(file.number, size - len(content), start + len(content))):
                content += more
        except OSError as error:
            raise AudioError(f"{path}: cannot be read ({error.strerror or error}); bring it back") from error
        if len(content) < size:
            raise AudioError(
                f"{path}: is cut off: it ends before byte {start + size}, up to which a recording reaches; copy it "
                "again"
            )
        return content

    def _open(self, path: Path) -> _File:
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)
            else:
                self._files[path] = _File(path)
                if len(self._files) > self.most:
                    self._files.popitem(last=False)  # whoever reads from it still holds it
            return self._files[path]

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["most"])  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class ShardAudio:
    """A recording inside a tar.

    Attributes:
        tars: opens them.
        path: of the tar.
        start: byte at which the recording begins.
        size: bytes of the recording.
        key: what the recording is called by.
    """

    tars: OpenTars
    path: Path
    start: int
    size: int
    key: str

    def load(self) -> bytes:
        """The recording's file.

        Raises:
            AudioError: the tar cannot be read, or is cut off.
        """
        return self.tars.read(self.path, self.start, self.size)
