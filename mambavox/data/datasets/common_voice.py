"""One language of a Common Voice release: ``train.tsv``, ``dev.tsv``, ``test.tsv`` and ``clips/*.mp3``."""

from pathlib import Path

from mambavox.data.datasets.corpus import Corpus, check_listed, read_table
from mambavox.data.example import Example
from mambavox.data.protocol import OFFICIAL_LISTS

_TABLES = {"train": "train", "dev": "valid", "test": "test"}


def read_common_voice(folder: Path) -> list[Example]:
    """Read the official splits of one language; what is in none of their tables is left out.

    Args:
        folder: of the language in a release, such as ``cv-corpus-13.0-2023-03-09/ckb``.

    Returns:
        Examples with the fields ``text`` (the sentence, as published), ``subset`` (train, dev, test), ``split``,
        ``speaker`` (the client), ``language`` and the others of the tables.

    Raises:
        DataError: a table is malformed, or names a file that is missing or named twice.

    Source:
        Ardila et al. 2020 (arXiv 1912.06670).
    """
    files: list[tuple[str, Path]] = []
    examples = []
    for subset, split in _TABLES.items():
        table = folder / f"{subset}.tsv"
        if not table.is_file():
            continue
        for place, row in read_table(table, ("client_id", "path", "sentence")):
            # Releases before the fifth leave the ending out.
            name = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"
            files.append((place, folder / "clips" / name))
            own = {
                "text": row["sentence"],
                "subset": subset,
                "split": split,
                "speaker": row["client_id"],
                "language": row.get("locale") or folder.name,
            }
            examples.append(Example(files[-1][1], None, {**row, **own}))
    check_listed(files)
    return examples


COMMON_VOICE = Corpus(
    name="common_voice",
    title="Common Voice",
    source="commonvoice.mozilla.org/datasets",
    num_clips=None,
    layout=("clips",),
    any_of=("train.tsv", "dev.tsv", "test.tsv"),
    reader=read_common_voice,
    protocols=(OFFICIAL_LISTS,),
)
