"""Read a folder that holds one folder of recordings per class."""

import mimetypes
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from mambavox.data.audio import AUDIO_SUFFIXES, READABLE_SUFFIXES
from mambavox.data.audio_file import can_open
from mambavox.data.columns import listed
from mambavox.data.example import Example
from mambavox.errors import DataError, DataWarning

# What is named like sound or film and holds none.
_NO_SOUND = frozenset({"audio/mpegurl", "audio/x-mpegurl", "audio/x-scpls", "audio/midi", "audio/sp-midi"})


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is left out by its name (``.git``, ``_background_noise_``)."""
    return path.name.startswith((".", "_"))


def is_recording(path: Path) -> bool:
    """Whether a file is taken for a recording.

    It is one if it can be opened as such, whatever it is called; or if its name says that it is sound or film, so that
    one that cannot be read is reported and not overlooked.

    Args:
        path: of the file.
    """
    # Of what is named as most recordings are, it will be seen when it is read.
    return path.suffix.lower() in READABLE_SUFFIXES or can_open(path) or is_named_as_sound(path.name)


def is_named_as_sound(name: str) -> bool:
    """Whether a file's name says that it is sound or film."""
    kind = mimetypes.guess_type(name)[0] or ""
    return Path(name).suffix.lower() in AUDIO_SUFFIXES or (
        kind.startswith(("audio/", "video/")) and kind not in _NO_SOUND
    )


@dataclass
class FolderContent:
    """The files anywhere below a folder, in the order of their names, without those whose names begin with a dot.

    Attributes:
        recordings: those that are taken for recordings.
        hidden: recordings whose own name, or whose folder's, begins with an underscore; they are left out.
        others: the rest.
    """

    recordings: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def add(self, path: Path, *, hidden: bool = False) -> None:
        """Put a file where it belongs."""
        if is_recording(path):
            (self.hidden if hidden else self.recordings).append(path)
        elif not hidden:
            self.others.append(path)

    def left_out_with(self, other: "FolderContent") -> None:
        """Add what is left out of another folder."""
        self.hidden += other.hidden
        self.others += other.others

    def warn_of_left_out(self, where: str | Path) -> None:
        """Name the files that are not read, with their number.

        Args:
            where: the folder, for the message.

        Warns:
            DataWarning: there are some.
        """
        sentences = []
        if self.others:
            counts = counted(Counter(ending(path.name) for path in self.others))
            sentences.append(f"{len(self.others)} that no reader opens ({counts}), such as {self.others[0]}")
        if self.hidden:
            sentences.append(f"{len(self.hidden)} recordings under a name that begins with _, such as {self.hidden[0]}")
        if sentences:
            warnings.warn(f"{where}: files are left out: {'; '.join(sentences)}", DataWarning, stacklevel=3)


def ending(name: str) -> str:
    """How a file's name ends, in lower case and in words where it has no ending."""
    return PurePath(name).suffix.lower() or "without ending"


def counted(endings: Counter[str]) -> str:
    """How many files end in what, the most frequent first: ``12 .txt, 1 without ending``."""
    return listed([f"{count} {kind}" for kind, count in endings.most_common()])


def folder_content(folder: Path) -> FolderContent:
    """The files anywhere below a folder."""
    content = FolderContent()
    for path, hidden in _files(folder):
        content.add(path, hidden=hidden)
    return content


def files_in(folder: Path) -> FolderContent:
    """The files that lie in a folder itself."""
    content = FolderContent()
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and not path.is_dir():
            content.add(path, hidden=is_hidden(path))
    return content


def holds_recordings(folder: Path) -> bool:
    """Whether there is a recording anywhere below a folder."""
    return any(is_recording(path) for path, hidden in _files(folder) if not hidden)


def _files(folder: Path, hidden: bool = False, above: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, bool]]:
    """The files below a folder, and whether they are hidden; a link to a folder that holds it is not followed."""
    real = folder.resolve()
    if real in above:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, hidden or is_hidden(path), above | {real})
        else:
            yield path, hidden or is_hidden(path)


def audio_files(folder: Path) -> list[Path]:
    """Recordings anywhere below a folder, in the order of their names; those with hidden names are left out.

    Warns:
        DataWarning: there are files that are left out.
    """
    content = folder_content(folder)
    content.warn_of_left_out(folder)
    return content.recordings


def read_class_folders(
    folder: Path, *, labels_matter: bool = True, content: FolderContent | None = None
) -> list[Example]:
    """Read a folder per class; the folder's name is the class.

    Deeper folders (a folder per speaker, say) belong to the class above them. A folder with recordings and no
    class folders gives examples without labels.

    Args:
        folder: the folder of the class folders.
        labels_matter: whether recordings must not lie beside the class folders.
        content: receives what was found.

    Returns:
        Examples in the order of class and file name, each with the field ``label``; behind them those beside.

    Raises:
        DataError: there are recordings both in class folders and beside them, whose class nobody knows.
    """
    beside = files_in(folder)
    examples: list[Example] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        inside = folder_content(path)
        if is_hidden(path):
            beside.hidden += inside.recordings
            continue
        label = unicodedata.normalize("NFC", path.name).strip()
        examples += [Example(recording, label, {"label": label}) for recording in inside.recordings]
        beside.left_out_with(inside)
    if content is not None:
        content.left_out_with(beside)
    loose = beside.recordings
    if loose and examples and labels_matter:
        raise DataError(
            f"{folder}: recordings lie beside the class folders ({listed([path.name for path in loose])}); "
            "move each into the folder of its class"
        )
    return [*examples, *(Example(path) for path in loose)]
