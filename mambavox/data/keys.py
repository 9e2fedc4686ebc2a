"""What recordings are called by, wherever their folder lies."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mambavox.data.example import Example
from mambavox.data.shards.archive import ShardAudio
from mambavox.errors import DataError


def path_keys(examples: Sequence[Example]) -> list[str]:
    """What labels and shards call recordings: the path below the deepest folder that holds all of them, or the name.

    The same list of recordings has the same keys wherever its folder lies and however its path was given; a part of the
    list may have others.

    Args:
        examples: the recordings.

    Returns:
        A key for each.

    Raises:
        DataError: two recordings have the same key.
    """
    files = [_absolute(example.audio) for example in examples if isinstance(example.audio, Path)]
    root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    keys = [_key(example, root) for example in examples]
    repeated = [key for key, times in Counter(keys).items() if times > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} recordings are named like another one, such as {repeated[0]!r}; expected a name of its "
            "own for each (the name of Example)"
        )
    return keys


def _key(example: Example, root: Path) -> str:
    if isinstance(example.audio, Path):
        return _absolute(example.audio).relative_to(root).as_posix()
    return example.audio.key if isinstance(example.audio, ShardAudio) else example.name


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.expanduser().absolute()))
