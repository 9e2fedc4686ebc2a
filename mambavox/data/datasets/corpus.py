"""What is known of a well-known corpus, and what its readers share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mambavox.data.columns import listed, require_column, to_labels
from mambavox.data.example import Example
from mambavox.data.file_names import is_file
from mambavox.data.manifest import read_rows
from mambavox.data.protocol import Protocol
from mambavox.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """A corpus that is read as its authors publish it.

    Attributes:
        name: how it is asked for: ``name:/its/folder``.
        title: what its authors call it.
        source: where it is to be had.
        num_clips: how many recordings it has when it is complete; ``None`` where that depends on the release.
        layout: files and folders, relative to its own, by which it is known.
        reader: reads the recordings of its folder, with their labels.
        protocols: how results are obtained; the first unless another one is asked for.
        any_of: files and folders of which one at least must be there, too.
        by_name: its layout is not looked for: it is only read where it is asked for by name.
    """

    name: str
    title: str
    source: str
    num_clips: int | None
    layout: tuple[str, ...]
    reader: Callable[[Path], list[Example]]
    protocols: tuple[Protocol, ...]
    any_of: tuple[str, ...] = ()
    by_name: bool = False

    def is_at(self, folder: Path) -> bool:
        """Whether a folder has the layout of this corpus."""
        return not self.by_name and not self._absent(folder)

    def _absent(self, folder: Path) -> list[str]:
        """What of the layout is not there."""
        absent = [path for path in self.layout if not (folder / path).exists()]
        if self.any_of and not any((folder / path).exists() for path in self.any_of):
            absent.append(" or ".join(self.any_of))
        return absent

    def protocol(self, name: str | None = None) -> Protocol:
        """A protocol by its name; ``None`` is the first.

        Raises:
            DataError: there is none of that name.
        """
        if name is None:
            return self.protocols[0]
        for protocol in self.protocols:
            if protocol.name == name:
                return protocol
        raise DataError(
            f"protocol is {name}; {self.title} has {listed([protocol.name for protocol in self.protocols])}: "
            "choose one of them with --protocol"
        )

    def read(self, folder: Path, label_column: str | None = "label") -> list[Example]:
        """Read the recordings.

        Args:
            folder: of the corpus.
            label_column: ``"label"`` is the corpus's own class; otherwise the field that becomes the class, or
                ``None`` for no labels.

        Raises:
            DataError: the folder has another layout, a table or list is malformed or names a file that is missing
                or named twice (with the line), or there are no recordings, no such field, or gaps in it.
        """
        absent = self._absent(folder)
        if absent:
            raise DataError(
                f"{folder}: has no {listed(absent)}; expected the folder of {self.title} as it comes from {self.source}"
            )
        examples = self.reader(folder)
        if not examples:
            raise DataError(f"{folder}: holds no recordings of {self.title}; get the corpus from {self.source}")
        if label_column == "label":
            return examples
        if label_column is None:
            return [replace(example, label=None) for example in examples]
        require_column(label_column, list(examples[0].fields), "--label-column", str(folder))
        values = [example.fields[label_column] for example in examples]
        labels = to_labels(values, [example.name for example in examples], label_column, str(folder))
        return [replace(example, label=label) for example, label in zip(examples, labels, strict=True)]

    def miscount(self, num_clips: int) -> str | None:
        """Sentence on how far a number of recordings is from the complete corpus; ``None`` where it is complete."""
        if self.num_clips is None or num_clips == self.num_clips:
            return None
        missing = self.num_clips - num_clips
        what = f"{missing} are missing" if missing > 0 else f"{-missing} are not of the corpus"
        return f"{self.title} has {self.num_clips} recordings and {num_clips} were found: {what}"


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Read a corpus's table.

    Args:
        path: a ``.csv`` or ``.tsv`` file with a header line.
        columns: those that must be there, with a value in every line.

    Returns:
        For each line its place ("esc50.csv, line 2", with the whole path) and its values by column.

    Raises:
        DataError: the table is malformed, empty, or lacks a column or a value.
    """
    rows = [(f"{path}, line {number}", row) for number, row in read_rows(path)]
    for column in columns:
        if column not in rows[0][1]:
            raise DataError(f"{path}: has no column {column!r}; it has {listed(list(rows[0][1]))}")
        for place, row in rows:
            if not row[column]:
                raise DataError(f"{place}: {column!r} is empty; copy the table again from the corpus")
    return rows


def check_listed(files: Sequence[tuple[str, Path]]) -> None:
    """Check that files which a corpus lists exist, and are listed once.

    Args:
        files: place of the line ("esc50.csv, line 2") and the file that it names.

    Raises:
        DataError: one is missing or is listed twice; the message names file and line.
    """
    place_of: dict[Path, str] = {}
    for place, file in files:
        if file in place_of:
            raise DataError(f"{place}: {file} is already in {place_of[file]}; expected each recording in one line")
        place_of[file] = place
    missing = [f"{file} ({place})" for file, place in place_of.items() if not is_file(file)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} listed recordings do not exist: {listed(missing)}; "
            "unpack the corpus again, or take the lines out"
        )
