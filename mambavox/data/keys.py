"""What recordings are called by, wherever their folder lies."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mambavox.data.audio import AudioSegment
from mambavox.data.example import Example
from mambavox.data.shards.archive import ShardAudio
from mambavox.errors import DataError


def path_keys(examples: Sequence[Example]) -> list[str]:
    """What labels and shards call recordings: the path below the deepest folder that holds all of them, or the name.

    A stretch of a file is called by the file's path with its times: ``talks/a_12.340-15.670.wav``.

    The same list of recordings has the same keys wherever its folder lies and however its path was given; a part of the
    list may have others.

    Args:
        examples: the recordings.

    Returns:
        A key for each.

    Raises:
        DataError: two recordings have the same key.
    """
    files = [_absolute(file) for example in examples if (file := file_of(example)) is not None]
    root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    keys = [_key(example, root) for example in examples]
    repeated = [key for key, times in Counter(keys).items() if times > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} recordings are named like another one, such as {repeated[0]!r}; expected a name of its "
            "own for each (the name of Example)"
        )
    return keys


def file_of(example: Example) -> Path | None:
    """The file in which a recording, or a stretch of one, lies; ``None`` where it lies in something else."""
    audio = example.audio
    if isinstance(audio, AudioSegment):
        return audio.path
    return audio if isinstance(audio, Path) else None


def _key(example: Example, root: Path) -> str:
    file = file_of(example)
    if file is not None:
        path = _absolute(file).relative_to(root)
        return (path.with_name(example.audio.name) if isinstance(example.audio, AudioSegment) else path).as_posix()
    return example.audio.key if isinstance(example.audio, ShardAudio) else example.name


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.expanduser().absolute()))
