"""Read a folder that holds one folder of recordings per class."""

from pathlib import Path

from mambavox.data.audio import AUDIO_SUFFIXES
from mambavox.data.columns import listed
from mambavox.data.example import Example
from mambavox.errors import DataError


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is left out by its name (``.git``, ``_background_noise_``)."""
    return path.name.startswith((".", "_"))


def audio_files(folder: Path) -> list[Path]:
    """Recordings anywhere below a folder, in the order of their names; those with hidden names are left out."""
    found = []
    for path in sorted(folder.iterdir()):
        if is_hidden(path):
            continue
        if path.is_dir():
            found += audio_files(path)
        elif path.suffix.lower() in AUDIO_SUFFIXES:
            found.append(path)
    return found


def read_class_folders(folder: Path, *, labels_matter: bool = True) -> list[Example]:
    """Read a folder per class; the folder's name is the class.

    Deeper folders (a folder per speaker, say) belong to the class above them. A folder with recordings and no
    class folders gives examples without labels.

    Args:
        folder: the folder of the class folders.
        labels_matter: whether recordings must not lie beside the class folders.

    Returns:
        Examples in the order of class and file name, each with the field ``label``; behind them those beside.

    Raises:
        DataError: there are recordings both in class folders and beside them, whose class nobody knows.
    """
    loose = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES]
    loose = [path for path in loose if not is_hidden(path)]
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path)]
    examples = [Example(path, label.name, {"label": label.name}) for label in classes for path in audio_files(label)]
    if loose and examples and labels_matter:
        raise DataError(
            f"{folder}: recordings lie beside the class folders ({listed([path.name for path in loose])}); "
            "move each into the folder of its class"
        )
    return [*examples, *(Example(path) for path in loose)]
