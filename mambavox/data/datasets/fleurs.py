"""One language of FLEURS: ``train.tsv``, ``dev.tsv``, ``test.tsv`` without headers, and ``audio/train/*.wav``."""

import csv
from pathlib import Path

from mambavox.data.datasets.corpus import Corpus, check_listed
from mambavox.data.example import Example
from mambavox.data.protocol import OFFICIAL_LISTS
from mambavox.errors import DataError

_TABLES = {"train": "train", "dev": "valid", "test": "test"}
_COLUMNS = ("id", "file_name", "raw_text", "text", "characters", "num_samples", "gender")


def read_fleurs(folder: Path) -> list[Example]:
    """Read sentences that several people read in each of 102 languages.

    Args:
        folder: of one language, such as ``ckb_iq``. The recordings lie in ``audio/train`` or ``train``.

    Returns:
        Examples with the fields ``text`` (as its authors normalised it), ``raw_text``, ``subset``, ``split``,
        ``language`` (the folder's name), ``id`` of the sentence and ``gender``. There are no speakers.

    Raises:
        DataError: a table is malformed, or names a file that is missing or named twice.

    Source:
        Conneau et al. 2022 (arXiv 2205.12446).
    """
    files: list[tuple[str, Path]] = []
    examples = []
    for subset, split in _TABLES.items():
        table = folder / f"{subset}.tsv"
        if not table.is_file():
            continue
        home = next((home for home in (folder / "audio" / subset, folder / subset) if home.is_dir()), folder / subset)
        with table.open(encoding="utf-8", newline="") as lines:
            for number, values in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
                place = f"{table}, line {number}"
                if len(values) != len(_COLUMNS):
                    raise DataError(
                        f"{place}: has {len(values)} values; expected {len(_COLUMNS)}: {', '.join(_COLUMNS)}"
                    )
                row = dict(zip(_COLUMNS, values, strict=True))
                files.append((place, home / row["file_name"]))
                own = {"subset": subset, "split": split, "language": folder.resolve().name}
                examples.append(Example(files[-1][1], None, {**row, **own}))
    check_listed(files)
    return examples


FLEURS = Corpus(
    name="fleurs",
    title="FLEURS",
    source="huggingface.co/datasets/google/fleurs",
    num_clips=None,
    layout=(),
    any_of=("train.tsv", "dev.tsv", "test.tsv"),
    reader=read_fleurs,
    protocols=(OFFICIAL_LISTS,),
    by_name=True,
)
