"""Unpack an archive: files alone, below one folder, whole or not at all."""

import hashlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from mambavox.errors import DataError
from mambavox.files import PARTIAL

_BLOCK = 1 << 20


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or a tar into a folder, which appears whole.

    Links, devices and names that lead out of the folder are refused.

    Args:
        archive: the file.
        folder: that takes the place of an earlier one.

    Raises:
        DataError: the archive is damaged, or holds something that is no file below it.
        OSError: it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with _reading(archive):
            for name, content in _members(archive):
                target = partial / _inside(name, archive)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file, _BLOCK)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive}: is no whole archive ({error}); remove it, and get the corpus again") from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the files of an archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for item in file.infolist():
                if not item.is_dir():
                    with file.open(item) as content:
                        yield item.filename, content
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                continue
            data = tar.extractfile(member) if member.isreg() else None
            if data is None:
                raise DataError(f"{archive}: holds {member.name}, which is no file; it is not unpacked")
            yield member.name, data


def _inside(name: str, archive: Path) -> PurePosixPath:
    """A name without what leads nowhere, such as ``./``."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(f"{archive}: holds {name}, which lies outside of it; it is not unpacked")
    return path


def files_digest(folder: Path) -> str:
    """Hash of the files of a folder as Git knows them: their names and contents, however they were packed.

    It is the SHA-256 of lines ``blob  name``, in the order of the names, and can be had of a repository by
    ``git ls-tree COMMIT:FOLDER``.

    Args:
        folder: of files alone.
    """
    lines = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        lines.append(f"{blob}  {path.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
