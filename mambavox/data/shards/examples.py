"""The recordings of sharded corpora, of which nothing but the index is in memory."""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from os.path import commonpath
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mambavox.data.checks import AudioProblem
from mambavox.data.columns import listed, to_label
from mambavox.data.example import Example
from mambavox.data.examples import Examples
from mambavox.data.shards.archive import OpenTars, ShardAudio
from mambavox.data.shards.find import find_tars
from mambavox.data.shards.index import ShardIndex
from mambavox.data.splits import Part, part_led_by, part_named
from mambavox.errors import AudioError, DataError


class _Table:
    """Columns of all recordings; about 60 bytes each and their keys."""

    def __init__(self, paths: Sequence[Path], indices: Iterable[ShardIndex]) -> None:
        self.paths = list(paths)
        self.left_out: list[AudioProblem] = []
        columns: list[tuple[NDArray[Any], ...]] = []
        for path, index in zip(self.paths, indices, strict=True):  # one at a time: words take far more than columns
            if len(set(index.keys)) < len(index.keys):
                raise DataError(f"{path}: holds recordings of the same name; pack them anew, each with its own")
            words = [key.encode() for key in index.keys]
            columns.append(
                (
                    np.full(len(words), len(columns), np.int32),
                    index.starts,
                    index.sizes,
                    index.samples,
                    index.fields,
                    np.fromiter(map(len, words), np.int64, len(words)),
                    np.frombuffer(b"".join(words), np.uint8),
                    np.fromiter(map(hash, words), np.int64, len(words)),
                )
            )
            self.left_out += index.left_out
        joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
        self.shards, self.starts, self.sizes, self.samples, self.fields, sizes, self._words, hashes = joined
        if not len(self.samples):
            raise DataError(f"{len(self.paths)} shards hold no recordings; expected some")
        self._ends = np.cumsum(sizes)
        # Tars packed elsewhere may number their recordings anew in each.
        self._repeat_keys = len(np.unique(hashes)) < len(hashes)
        self.tars = OpenTars()

    @cached_property
    def names(self) -> list[str]:
        """Of the shards: their paths below the folder of all, without the ending."""
        parents = [path.absolute().parent for path in self.paths]
        root = commonpath(parents)
        return [path.absolute().relative_to(root).with_suffix("").as_posix() for path in self.paths]

    def key(self, row: int) -> str:
        start = self._ends[row - 1] if row else 0
        word = self._words[start : self._ends[row]].tobytes().decode()
        return f"{self.names[self.shards[row]]}/{word}" if self._repeat_keys else word


class ShardedExamples(Examples):
    """Recordings in tars, in the order of the tars and inside each.

    Each is made when it is asked for, so that millions cost tens of bytes each. Their fields are not read.

    Args:
        paths: of the tars.
        indices: of the tars.

    Raises:
        DataError: the tars hold no recordings, or two of one tar have the same name.
    """

    def __init__(self, paths: Sequence[Path], indices: Iterable[ShardIndex]) -> None:
        self._table = _Table(paths, indices)
        self._rows = np.arange(len(self._table.samples))
        self.tars, self.left_out = self._table.paths, self._table.left_out

    def select(self, rows: Sequence[int] | NDArray[Any]) -> "ShardedExamples":
        """The recordings at these indices, in this order; the index is shared."""
        selected = object.__new__(type(self))
        selected.__dict__.update(self.__dict__)
        selected._rows = self._rows[np.asarray(rows, dtype=np.int64)]
        return selected

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "ShardedExamples": ...
    def __getitem__(self, index: int | slice) -> "Example | ShardedExamples":
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        row, table = int(self._rows[index]), self._table
        path = table.paths[table.shards[row]]
        key = table.key(row)
        audio = ShardAudio(table.tars, path, int(table.starts[row]), int(table.sizes[row]), key)
        return Example(audio, None, {}, f"{path}: {key}")

    @property
    def keys(self) -> Sequence[str]:
        """Path of each inside its tar, with the tar's name before it where tars hold the same paths."""
        return _Keys(self._table, self._rows)

    @property
    def samples(self) -> NDArray[np.int64]:
        """``(recordings,)`` length of each at 16 kHz."""
        return self._table.samples[self._rows]

    @property
    def shards(self) -> NDArray[np.int32]:
        """``(recordings,)`` number of each one's tar."""
        return self._table.shards[self._rows]

    def splits(self) -> tuple[list[Part] | None, str]:
        """The split of each by the name of its tar.

        Raises:
            DataError: the names of some tars name a split and those of others do not.
        """
        where, shards, parts = "the names of the shards", self.shards, self.parts()
        present = np.unique(shards).tolist()
        named = [self.tars[shard].name for shard in present if parts[shard] is not None]
        unnamed = [self.tars[shard].name for shard in present if parts[shard] is None]
        if named and unnamed:
            raise DataError(
                f"{listed(unnamed)}: named neither train, valid nor test, as {listed(named)} are, so that nobody knows "
                f"which split they are of; rename each with its index, such as train-{unnamed[0]}, or leave them out "
                "of --data"
            )
        return ([part for shard in shards.tolist() if (part := parts[shard])] if named else None), where

    def parts(self) -> list[Part | None]:
        """What each tar is for by its name (``train-000000.tar``) or its folder's: train, valid, test or ``None``."""
        return [part_led_by(path.stem) or part_named(path.parent.name) for path in self.tars]

    def with_fields(self, label_column: str | None) -> list[Example]:
        """All of them with the fields of the JSON beside each.

        Args:
            label_column: field of the class; ``None`` reads no labels.

        Raises:
            DataError: what lies beside a recording is no JSON object.
        """
        parts = self.parts()
        examples = []
        for row, example in zip(self._rows.tolist(), self, strict=True):
            shard = int(self._table.shards[row])
            fields: dict[str, Any] = {"split": parts[shard]} if all(parts) else {}
            start, size = self._table.fields[row].tolist()
            if size:
                fields |= self._read_fields(self.tars[shard], start, size, example.name)
            label = None
            if label_column is not None:
                label = to_label(fields.get(label_column))
                if label is None:
                    raise DataError(
                        f"{example.name}: has no {label_column!r} in its JSON; it has {', '.join(fields) or 'none'}. "
                        "Name the right one with --label-column"
                    )
            examples.append(Example(example.audio, label, fields, example.name))
        return examples

    def _read_fields(self, path: Path, start: int, size: int, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self._table.tars.read(path, start, size))
        except (ValueError, RecursionError, AudioError) as error:
            raise DataError(f"{name}: the JSON beside it cannot be read ({error}); pack the tar anew") from error
        if not isinstance(content, dict):
            raise DataError(f"{name}: the JSON beside it is {type(content).__name__}; expected an object")
        return content


class _Keys(Sequence[str]):
    """Keys of recordings, put into words when asked for."""

    def __init__(self, table: _Table, rows: NDArray[np.int64]) -> None:
        self._table, self._rows = table, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "_Keys": ...
    def __getitem__(self, index: int | slice) -> "str | _Keys":
        if isinstance(index, slice):
            return _Keys(self._table, self._rows[index])
        return self._table.key(int(self._rows[index]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


def read_shards(pattern: str | Path) -> ShardedExamples:
    """The recordings of a sharded corpus, of which only the index is read.

    Args:
        pattern: see :func:`mambavox.data.shards.find.find_tars`.

    Raises:
        DataError: a tar is missing, cut off or has no index.
    """
    tars = find_tars(pattern)
    return ShardedExamples(tars, map(ShardIndex.load, tars))
