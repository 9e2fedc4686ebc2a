"""ESC-50 and ESC-10 as their author publishes them: ``meta/esc50.csv`` and ``audio/``."""

from pathlib import Path

from mambavox.data.example import Example
from mambavox.data.manifest import read_manifest

_TABLE = Path("meta") / "esc50.csv"


def is_esc50(folder: Path) -> bool:
    """Whether a folder has the layout of ESC-50."""
    return (folder / _TABLE).is_file() and (folder / "audio").is_dir()


def read_esc50(folder: Path, *, label_column: str | None = "category") -> list[Example]:
    """Read environmental sounds: 2000 clips of 5 s, 50 classes, 5 folds.

    Args:
        folder: the folder of the corpus, as cloned from github.com/karolpiczak/ESC-50.
        label_column: column of the class (``category``); ``None`` reads no labels.

    Returns:
        Examples with the fields ``fold`` ("1" to "5"), ``category``, ``esc10`` and the others of the table.

    Raises:
        DataError: the table is malformed.

    Source:
        Piczak 2015, ESC: Dataset for Environmental Sound Classification.
    """
    return read_manifest(
        folder / _TABLE, label_column=label_column, audio_column="filename", audio_folder=folder / "audio"
    )
