"""UrbanSound8K as its authors publish it: ``metadata/UrbanSound8K.csv`` and ``audio/fold1`` to ``fold10``."""

from pathlib import Path

from mambavox.data.datasets.corpus import Corpus, check_listed, read_table
from mambavox.data.example import Example
from mambavox.data.protocol import cross_validation


def read_urbansound8k(folder: Path) -> list[Example]:
    """Read urban sounds: 8732 clips of at most 4 s, 10 classes, 10 folds.

    Args:
        folder: the folder of the corpus, ``UrbanSound8K``.

    Returns:
        Examples labelled by ``class``, with the fields ``fold`` ("1" to "10"), ``fsID`` (the recording that the clip
        was cut from; no fold shares one) and the others of the table.

    Raises:
        DataError: the table is malformed, or names a file that is missing or named twice.

    Source:
        Salamon, Jacoby and Bello 2014, A Dataset and Taxonomy for Urban Sound Research.
    """
    rows = read_table(folder / "metadata" / "UrbanSound8K.csv", ("slice_file_name", "fold", "class"))
    files = [(place, folder / "audio" / f"fold{row['fold']}" / row["slice_file_name"]) for place, row in rows]
    check_listed(files)
    return [Example(file, row["class"], row) for (_, file), (_, row) in zip(files, rows, strict=True)]


URBANSOUND8K = Corpus(
    name="urbansound8k",
    title="UrbanSound8K",
    source="urbansounddataset.weebly.com",
    num_clips=8732,
    layout=("metadata/UrbanSound8K.csv", "audio"),
    reader=read_urbansound8k,
    protocols=(
        cross_validation("official", "fold", num_folds=10, valid_offset=1),
        # The MambAdapter paper's code keeps the epoch that is best on the test fold.
        cross_validation("paper", "fold", num_folds=10, valid_offset=None),
    ),
)
