"""CL-MASR as its scripts prepare it: ``train.csv``, ``dev.csv``, ``test.csv`` and ``ckb/clips/*.mp3``."""

from pathlib import Path

from mambavox.data.datasets.corpus import Corpus, check_listed, read_table
from mambavox.data.example import Example
from mambavox.data.protocol import OFFICIAL_LISTS
from mambavox.errors import DataError

_TABLES = {"train": "train", "dev": "valid", "test": "test"}
_ROOT = "$data_root"


def read_cl_masr(folder: Path) -> list[Example]:
    """Read the benchmark's part of Common Voice 13: up to 10 h, 1 h and 1 h of each language.

    Args:
        folder: of the benchmark for all languages, or of one of its languages.

    Returns:
        Examples with the fields ``text`` (``wrd``, as published: without apostrophes), ``subset``, ``split``,
        ``language`` and the others of the tables. The tables name no speakers.

    Raises:
        DataError: a table is malformed, or names a file that is missing or named twice, or nothing in that language.

    Source:
        Della Libera et al. 2023, CL-MASR (arXiv 2310.16931).
    """
    one = not any((folder / f"{subset}.csv").is_file() for subset in _TABLES)
    root, language = (folder.parent, folder.name) if one else (folder, None)
    files: list[tuple[str, Path]] = []
    examples, languages = [], set()
    for subset, split in _TABLES.items():
        table = root / f"{subset}.csv"
        if not table.is_file():
            continue
        for place, row in read_table(table, ("ID", "mp3", "wrd", "locale", "duration")):
            languages.add(row["locale"])
            if language is not None and row["locale"] != language:
                continue
            files.append((place, root / row["mp3"].removeprefix(_ROOT).lstrip("/")))
            own = {"text": row["wrd"], "subset": subset, "split": split, "language": row["locale"]}
            examples.append(Example(files[-1][1], None, {**row, **own}))
    if language is not None and not examples:
        raise DataError(f"{folder}: the tables have no locale {language!r}; they have {', '.join(sorted(languages))}")
    check_listed(files)
    return examples


CL_MASR = Corpus(
    name="cl_masr",
    title="CL-MASR",
    source="zenodo.org/record/8065754",
    num_clips=None,
    layout=(),
    any_of=("train.csv", "../train.csv"),
    reader=read_cl_masr,
    protocols=(OFFICIAL_LISTS,),
    by_name=True,
)
