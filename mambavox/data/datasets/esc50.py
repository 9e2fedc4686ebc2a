"""ESC-50 and its subset ESC-10 as their author publishes them: ``meta/esc50.csv`` and ``audio/``."""

from pathlib import Path

from mambavox.data.datasets.corpus import Corpus, check_listed, read_table
from mambavox.data.example import Example
from mambavox.data.protocol import cross_validation

_LAYOUT = ("meta/esc50.csv", "audio")
_SOURCE = "github.com/karolpiczak/ESC-50"
# The valid fold lies before the test fold: 123/4/5, 234/5/1, 345/1/2, 451/2/3, 512/3/4.
_PROTOCOLS = (cross_validation("official", "fold", num_folds=5, valid_offset=-1),)


def read_esc50(folder: Path) -> list[Example]:
    """Read environmental sounds: 2000 clips of 5 s, 50 classes, 5 folds.

    Args:
        folder: the folder of the corpus, as cloned from github.com/karolpiczak/ESC-50.

    Returns:
        Examples labelled by ``category``, with the fields ``fold`` ("1" to "5"), ``category``, ``esc10`` ("True" or
        "False") and the others of the table.

    Raises:
        DataError: the table is malformed, or names a file that is missing or named twice.

    Source:
        Piczak 2015, ESC: Dataset for Environmental Sound Classification. Which fold validates: the MambAdapter code.
    """
    rows = read_table(folder / "meta" / "esc50.csv", ("filename", "fold", "category", "esc10"))
    files = [(place, folder / "audio" / row["filename"]) for place, row in rows]
    check_listed(files)
    return [Example(file, row["category"], row) for (_, file), (_, row) in zip(files, rows, strict=True)]


def read_esc10(folder: Path) -> list[Example]:
    """Read the 400 clips, 10 classes, of ESC-50 that are ESC-10; see :func:`read_esc50`."""
    return [example for example in read_esc50(folder) if example.fields["esc10"] == "True"]


ESC50 = Corpus("esc50", "ESC-50", _SOURCE, 2000, _LAYOUT, read_esc50, _PROTOCOLS)
ESC10 = Corpus("esc10", "ESC-10", _SOURCE, 400, _LAYOUT, read_esc10, _PROTOCOLS)
