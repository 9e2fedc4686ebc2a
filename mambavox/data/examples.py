"""The recordings of a data set, listed in memory or left in tars: one interface for both."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mambavox.data.checks import AudioProblem
from mambavox.data.example import Example
from mambavox.data.keys import path_keys
from mambavox.data.splits import Part, parts_by_split


class Examples(Sequence[Example]):
    """Recordings, and what is known of them before they are read. See :class:`ListedExamples` and ``ShardedExamples``.

    Attributes:
        tars: files that hold the recordings of a sharded data set; none of one that is listed.
        left_out: recordings of the tars that could not be used and are not among these.
    """

    tars: list[Path]
    left_out: list[AudioProblem]

    @abstractmethod
    def select(self, rows: Sequence[int] | NDArray[Any]) -> "Examples":
        """The recordings at these indices, in this order."""

    @property
    @abstractmethod
    def keys(self) -> Sequence[str]:
        """What labels and shards call each; see :func:`recording_keys`."""

    @property
    @abstractmethod
    def shards(self) -> NDArray[np.int32] | None:
        """``(recordings,)`` index in ``tars`` of each; ``None`` where there are no tars."""

    @property
    @abstractmethod
    def samples(self) -> NDArray[np.int64] | None:
        """``(recordings,)`` length of each at 16 kHz; ``None`` where only reading the files would tell."""

    @abstractmethod
    def splits(self) -> tuple[list[Part] | None, str]:
        """The split of each, ``None`` where nothing names it, and what names it, in words.

        Raises:
            DataError: the splits of some are named and those of others are not.
        """


class ListedExamples(Examples):
    """Recordings that stand in a list: files, rows of a data set, arrays.

    Args:
        examples: the recordings.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = list(examples)
        self.tars, self.left_out = [], []

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "ListedExamples": ...
    def __getitem__(self, index: int | slice) -> "Example | ListedExamples":
        return ListedExamples(self._examples[index]) if isinstance(index, slice) else self._examples[index]

    def select(self, rows: Sequence[int] | NDArray[Any]) -> "ListedExamples":
        """The recordings at these indices, in this order."""
        return ListedExamples([self._examples[int(row)] for row in rows])

    @property
    def keys(self) -> Sequence[str]:
        """What labels and shards call each; see :func:`mambavox.data.keys.path_keys`.

        Raises:
            DataError: two recordings have the same key.
        """
        return path_keys(self._examples)

    @property
    def shards(self) -> None:
        """There are no tars."""

    @property
    def samples(self) -> None:
        """Only reading the files tells."""

    def splits(self) -> tuple[list[Part] | None, str]:
        """The split of each by its column ``split``; see :func:`mambavox.data.splits.parts_by_split`."""
        return parts_by_split(self._examples), "column split"


def recording_keys(examples: Sequence[Example]) -> Sequence[str]:
    """What labels and shards call recordings: the path below the deepest folder that holds all, or inside the tar.

    Args:
        examples: the recordings.

    Raises:
        DataError: two recordings have the same key.
    """
    return examples.keys if isinstance(examples, Examples) else path_keys(examples)
