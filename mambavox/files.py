"""Files that are either the old or the new ones, whenever the process is killed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A file to write in the place of another, which it takes once it is whole; what fails before leaves the old one.

    Args:
        path: of the other; its folder must exist.
        sync: whether the content must be on the disk first: a power cut could otherwise leave an empty file.

    Yields:
        Where to write.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(b"")
        # Some libraries, safetensors among them, write for the owner alone; others would not be able to read the file.
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def to_json(content: Any) -> str:
    """Readable JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
