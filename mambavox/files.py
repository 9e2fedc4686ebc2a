"""Files that are either the old or the new ones, whenever the process is killed."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mambavox.errors import RunError

PARTIAL = ".partial"
"""End of the name, which begins with a dot, of what is being written or removed."""
_SMALL = 1 << 20  # bytes


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A file to write in the place of another, which it takes once it is whole; what fails before leaves the old one.

    Args:
        path: of the other; its folder must exist.
        sync: whether the content must be on the disk first: a power cut could otherwise leave an empty file.

    Yields:
        Where to write.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        mode = _create(partial)
        yield partial
        # Some libraries, safetensors among them, write for the owner alone; others would not be able to read the file.
        partial.chmod(mode)
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _create(path: Path) -> int:
    """Create an empty file in the place of what a kill left, never through a link that lies there; its permissions."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    number = os.open(path, flags, 0o666)
    try:
        return os.fstat(number).st_mode
    finally:
        os.close(number)


def make_readable(folder: Path) -> None:
    """Give weights the permissions of any new file: safetensors writes them for their owner alone.

    Args:
        folder: of the weights; other files, and what lies deeper, stay as they are.
    """
    probe = folder / f".mode{PARTIAL}"
    mode = _create(probe)
    probe.unlink()
    for path in folder.glob("*.safetensors"):
        if not path.is_symlink():
            path.chmod(mode)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a kill left half written."""
    return all(path.name.startswith(".") and path.name.endswith(PARTIAL) for path in folder.iterdir())


@contextmanager
def watching_the_disk(folder: Path, mend: Callable[[], str]) -> Iterator[None]:
    """Turn the many errors of a full disk into one for the user.

    Args:
        folder: that is written into.
        mend: says what to do.

    Raises:
        RunError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RunError) or not _is_disk_full(error, folder):
            raise
        raise RunError(f"{folder}: the disk is full. {mend()}") from error


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left" in str(error) or "Disk quota" in str(error):
        return True
    # torch's writer says only that it failed, in one of several ways.
    from_torch = any(word in str(error) for word in ("PytorchStreamWriter", "inline_container", "iostream"))
    return from_torch and shutil.disk_usage(folder).free < _SMALL


def to_json(content: Any) -> str:
    """Readable JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
