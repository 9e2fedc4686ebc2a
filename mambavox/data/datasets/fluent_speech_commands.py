"""Fluent Speech Commands as published: ``data/{train,valid,test}_data.csv`` and ``wavs/speakers/``."""

from pathlib import Path

from mambavox.data.datasets.corpus import Corpus, check_listed, read_table
from mambavox.data.example import Example
from mambavox.data.protocol import OFFICIAL_LISTS

_TABLES = {part: f"data/{part}_data.csv" for part in ("train", "valid", "test")}
_SLOTS = ("action", "object", "location")


def read_fluent_speech_commands(folder: Path) -> list[Example]:
    """Read spoken commands to a smart home: 30 043 clips, 97 speakers, 31 intents, official lists.

    Args:
        folder: the folder of the corpus, ``fluent_speech_commands_dataset``.

    Returns:
        Examples labelled ``action-object-location`` ("activate-lights-kitchen"), with the fields ``intent``,
        ``speakerId``, ``split`` and the others of the tables.

    Raises:
        DataError: a table is malformed, or names a file that is missing, or named before in any table.

    Source:
        Lugosch et al. 2019 (arXiv 1904.03670).
    """
    files: list[tuple[str, Path]] = []
    examples = []
    for part, table in _TABLES.items():
        for place, row in read_table(folder / table, ("path", "speakerId", *_SLOTS)):
            intent = "-".join(row[slot] for slot in _SLOTS)
            files.append((place, folder / row["path"]))
            # The tables number their lines in a column without a name.
            fields = {column: value for column, value in row.items() if column}
            examples.append(Example(files[-1][1], intent, {**fields, "intent": intent, "split": part}))
    check_listed(files)
    return examples


FLUENT_SPEECH_COMMANDS = Corpus(
    name="fluent_speech_commands",
    title="Fluent Speech Commands",
    source="fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research",
    num_clips=30_043,
    layout=tuple(_TABLES.values()),
    reader=read_fluent_speech_commands,
    protocols=(OFFICIAL_LISTS,),
)
