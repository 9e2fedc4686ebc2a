"""Google Speech Commands V2 as published: a folder a word, ``validation_list.txt`` and ``testing_list.txt``."""

from pathlib import Path

from mambavox.data.class_folders import audio_files, is_hidden
from mambavox.data.datasets.corpus import Corpus, check_listed
from mambavox.data.example import Example
from mambavox.data.protocol import OFFICIAL_LISTS

_LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}


def read_speech_commands(folder: Path) -> list[Example]:
    """Read spoken words: 105 829 clips of at most 1 s, 35 words, official lists.

    Args:
        folder: the folder of the corpus. ``_background_noise_`` is left out.

    Returns:
        Examples labelled by their word, with the fields ``label``, ``speaker`` and ``split``: valid and test as the
        lists say, train for whatever is in neither.

    Raises:
        DataError: a list names a file that is missing, or named before in either list.

    Source:
        Warden 2018 (arXiv 1804.03209).
    """
    files: list[tuple[str, Path]] = []
    part_of: dict[Path, str] = {}
    for part, name in _LISTS.items():
        for number, line in enumerate((folder / name).read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                files.append((f"{folder / name}, line {number}", folder / line.strip()))
                part_of[files[-1][1]] = part
    check_listed(files)
    words = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path)]
    return [
        Example(
            path,
            word.name,
            {"label": word.name, "speaker": path.stem.split("_nohash_")[0], "split": part_of.get(path, "train")},
        )
        for word in words
        for path in audio_files(word)
    ]


SPEECH_COMMANDS = Corpus(
    name="speech_commands",
    title="Speech Commands V2",
    source="download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    num_clips=105_829,
    layout=tuple(_LISTS.values()),
    reader=read_speech_commands,
    protocols=(OFFICIAL_LISTS,),
)
