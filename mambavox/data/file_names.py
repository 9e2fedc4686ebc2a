"""Find the files that lists name, however their names are written."""

import os
import unicodedata
from pathlib import Path
from typing import Literal

from mambavox.errors import DataError

_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


def find_file(folder: Path, name: str, where: str) -> Path:
    """The file that a list means.

    Letters with marks can be written in two ways, which look alike: as one character, as most programs write them, or
    as the letter and its mark, as macOS names files. A file is found by either, and by its name without white space
    around it.

    Args:
        folder: that relative names start from.
        name: as the list has it; ``~`` is a home folder.
        where: file, line and column, for the message.

    Returns:
        The file; where there is none, the path as it is written.

    Raises:
        DataError: no file can have such a name.
    """
    if "\0" in name:
        raise DataError(f"{where} holds a NUL character; expected the path of an audio file")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise DataError(f"{where} is {name!r}, which no file can be called; expected the path of a file") from error
    try:
        path = folder / Path(name).expanduser()
    except RuntimeError as error:  # ~nobody
        raise DataError(f"{where} is {name!r}, and nobody here has that name: expected the path of a file") from error
    if _exists(path):
        return path
    if name.strip() != name and _exists(stripped := folder / name.strip()):
        return stripped
    return path if name.isascii() else _found_in_another_form(folder, path)


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long
        return False


def _found_in_another_form(folder: Path, path: Path) -> Path:
    """The same path with each of its parts in the form in which it is there."""
    base = folder if path.is_relative_to(folder) else Path(path.anchor)
    found = base
    for part in path.relative_to(base).parts:
        forms = [found / part, *(found / unicodedata.normalize(form, part) for form in _FORMS)]
        found = next((candidate for candidate in forms if _exists(candidate)), forms[0])
    return found if _exists(found) else path


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False
