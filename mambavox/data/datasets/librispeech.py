"""LibriSpeech as published: ``train-clean-100/103/1240/103-1240-0000.flac`` and a list of transcripts a chapter."""

from pathlib import Path

from mambavox.data.datasets.corpus import Corpus, check_listed
from mambavox.data.example import Example
from mambavox.data.protocol import OFFICIAL_LISTS
from mambavox.errors import DataError

SUBSETS = {
    "train-clean-100": "train",
    "train-clean-360": "train",
    "train-other-500": "train",
    "dev-clean": "valid",
    "dev-other": "valid",
    "test-clean": "test",
    "test-other": "test",
    # Mini LibriSpeech, openslr.org/31.
    "train-clean-5": "train",
    "dev-clean-2": "valid",
}
"""Official subsets and the splits that they belong to."""


def read_librispeech(folder: Path) -> list[Example]:
    """Read English audiobooks with their transcripts: those of the official subsets that are there.

    Args:
        folder: of the corpus, with the subsets in it.

    Returns:
        Examples with the fields ``text`` (upper case, as published), ``subset``, ``split`` (train, valid, test),
        ``speaker``, ``chapter`` and ``language``.

    Raises:
        DataError: a list of transcripts is malformed, or names a file that is missing or named twice.

    Source:
        Panayotov et al. 2015, LibriSpeech: an ASR corpus based on public domain audio books.
    """
    files: list[tuple[str, Path]] = []
    examples = []
    for subset, split in SUBSETS.items():
        for list_file in sorted((folder / subset).glob("*/*/*.trans.txt")):
            for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines(), start=1):
                if not line.strip():
                    continue
                place = f"{list_file}, line {number}"
                utterance, _, text = line.strip().partition(" ")
                speaker, _, rest = utterance.partition("-")
                if not rest or not text:
                    raise DataError(f"{place}: is {line.strip()!r}; expected an utterance (103-1240-0000) and its text")
                files.append((place, list_file.parent / f"{utterance}.flac"))
                fields = {
                    "text": text,
                    "subset": subset,
                    "split": split,
                    "speaker": speaker,
                    "chapter": list_file.parent.name,
                    "language": "en",
                }
                examples.append(Example(files[-1][1], None, fields))
    check_listed(files)
    return examples


LIBRISPEECH = Corpus(
    name="librispeech",
    title="LibriSpeech",
    source="openslr.org/12",
    num_clips=None,
    layout=(),
    any_of=tuple(SUBSETS),
    reader=read_librispeech,
    protocols=(OFFICIAL_LISTS,),
)
