"""Which tars ``shards:...`` names."""

import glob
import re
from itertools import product
from pathlib import Path

from mambavox.errors import DataError

SCHEME = "shards:"
"""Before a pattern, a folder or a tar."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_tars(pattern: str | Path) -> list[Path]:
    """The tars that a pattern names, in the order of their names.

    Args:
        pattern: a folder of tars, a tar, a glob (``/data/*.tar``), or braces as in WebDataset:
            ``/data/train-{000000..000999}.tar``, ``/data/{train,extra}-*.tar``. With or without ``shards:``.

    Raises:
        DataError: nothing has such a name, or one of a range is missing.
    """
    words = str(pattern).removeprefix(SCHEME)
    found: list[Path] = []
    for name in _expand(words):
        path = Path(name).expanduser()
        if path.is_dir():
            tars = [tar for tar in sorted(path.rglob("*.tar")) if not tar.name.startswith(".")]
        elif glob.has_magic(name):
            tars = [Path(tar) for tar in sorted(glob.glob(str(path)))]  # noqa: PTH207 (Path.glob needs a folder)
        else:
            tars = [path]
        if not tars:
            raise DataError(
                f"{pattern}: no tars in {name}; expected a folder of .tar files, or a pattern of their names"
            )
        found += tars
    missing = [tar for tar in found if not tar.is_file()]
    if missing:
        raise DataError(
            f"{pattern}: {len(missing)} of {len(found)} tars are not there, such as {missing[0]}; bring them back, or "
            "leave them out of the pattern"
        )
    twice = len(found) - len(set(found))
    if twice:
        raise DataError(f"{pattern}: names {twice} tars more than once; expected each once")
    return found


def _expand(words: str) -> list[str]:
    """Write out braces: ``{000..002}`` and ``{a,b}``."""
    pieces = _BRACES.split(words)
    choices = [[piece] if place % 2 == 0 else _choices(piece) for place, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        return inside.split(",")
    first, last = span.groups()
    if int(last) < int(first):
        raise DataError(f"{{{inside}}}: ends before it begins; expected such as {{000000..000999}}")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
