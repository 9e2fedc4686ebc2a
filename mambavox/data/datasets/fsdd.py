"""The Free Spoken Digit Dataset as published: ``recordings/7_jackson_32.wav``."""

import re
from pathlib import Path

from mambavox.data.example import Example
from mambavox.errors import DataError

_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)")
_TEST = range(5)
_VALID = range(5, 10)


def read_fsdd(folder: Path) -> list[Example]:
    """Read spoken digits: of each speaker and digit 50 recordings.

    Args:
        folder: of the corpus, as cloned from github.com/Jakobovski/free-spoken-digit-dataset.

    Returns:
        Examples labelled by their digit, with the fields ``speaker``, ``index`` and ``split``: indices 0 to 4 are
        tested on, as its authors say; 5 to 9, which they count to the training, are the valid split.

    Raises:
        DataError: a file is named in another way.
    """
    examples = []
    for path in sorted((folder / "recordings").glob("*.wav")):
        found = _NAME.fullmatch(path.stem)
        if found is None:
            raise DataError(f"{path}: is named in another way than a digit, a speaker and an index (7_jackson_32.wav)")
        index = int(found["index"])
        split = "test" if index in _TEST else "valid" if index in _VALID else "train"
        examples.append(Example(path, found["digit"], {"speaker": found["speaker"], "index": index, "split": split}))
    return examples
