"""Batches by seconds: which recordings are heard together, how much of each, and in which order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambavox.errors import DataError

_BATCHES_SORTED = 50  # at a time: enough for like lengths, few enough for other neighbours in each epoch


@dataclass(frozen=True)
class Crop:
    """A stretch of one recording, to be drawn.

    Attributes:
        epoch: number of the pass over the recordings.
        index: of the recording.
        samples: length of the stretch.
    """

    epoch: int
    index: int
    samples: int


@dataclass(frozen=True)
class Window:
    """Shards whose recordings are mixed.

    Attributes:
        epoch: number of the pass over the recordings.
        number: of the window in it.
        shards: numbers of the shards, ascending; of recordings without shards the one shard 0.
    """

    epoch: int
    number: int
    shards: tuple[int, ...]


class BatchesBySeconds:
    """An endless sequence of batches, of which an update takes the same number each.

    In each epoch every recording is drawn once: recordings in a random order, stretches of which are sorted by length,
    are cut into batches, whose order is random again. A batch holds as many recordings as fit, each cropped to the
    shortest, so that nothing is padded (as HuBERT's code does); recordings of like length lose little. The sequence
    depends on the seed alone, so that it is the same for any number of processes and after a resumption.

    Recordings in shards are drawn window by window, so that few shards are read at a time: the shards in a random order
    are cut into windows, and only what lies in one window is mixed, as above. With one window for all shards the
    sequence is that of the same recordings without shards.

    Args:
        lengths: samples of each recording.
        batch_samples: of a batch, at most.
        max_samples: of a recording that are heard at a time.
        seed: of the orders.
        shards: number of each recording's shard, ascending; ``None``: no shards.
        shuffle_shards: shards of a window, at most.

    Raises:
        DataError: there are no recordings, or the recordings of a shard do not follow each other.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int64],
        *,
        batch_samples: int,
        max_samples: int,
        seed: int,
        shards: NDArray[Any] | None = None,
        shuffle_shards: int = 1,
    ) -> None:
        if not len(lengths):
            raise DataError("no recordings to make batches of")
        self.lengths = np.minimum(np.asarray(lengths, dtype=np.int64), max_samples)
        self.batch_samples = max(batch_samples, int(self.lengths.max()))
        self.seed, self.shuffle_shards = seed, shuffle_shards
        # Recordings that make about a fixed number of batches.
        self._stretch = max(1, round(_BATCHES_SORTED * self.batch_samples / self.lengths.mean()))
        shards = np.zeros(len(self.lengths), np.int64) if shards is None else np.asarray(shards)
        if len(shards) != len(self.lengths) or (np.diff(shards) < 0).any():
            raise DataError("the recordings of a shard do not follow each other; expected them in the order of shards")
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        ends = [*starts[1:].tolist(), len(shards)]
        self._spans = {int(shards[first]): (int(first), end) for first, end in zip(starts, ends, strict=True)}

    def windows(self, epoch: int) -> list[Window]:
        """The windows of one pass, in their order.

        Args:
            epoch: number of the pass, from 0.
        """
        shards = np.array(list(self._spans))
        count = -(-len(shards) // self.shuffle_shards)
        if count > 1:
            shards = np.random.default_rng((self.seed, epoch, 0, 1)).permutation(shards)
        return [
            Window(epoch, number, tuple(sorted(part.tolist())))
            for number, part in enumerate(np.array_split(shards, count))
        ]

    def in_window(self, window: Window) -> Iterator[list[Crop]]:
        """The batches of a window.

        Args:
            window: of :meth:`windows`.
        """
        for batch in self._cut(window):
            samples = int(self.lengths[batch].min())
            yield [Crop(window.epoch, int(index), samples) for index in batch]

    def _cut(self, window: Window) -> list[NDArray[np.int64]]:
        key = (self.seed, window.epoch, window.number) if window.number else (self.seed, window.epoch)
        generator = np.random.default_rng(key)
        order = generator.permutation(np.concatenate([np.arange(*self._spans[shard]) for shard in window.shards]))
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), self._stretch):
            part = order[start : start + self._stretch]
            # Longest first: the longest decides how many fit. A stable sort keeps equals in their random order.
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            while len(part):
                size = max(1, int(self.batch_samples // self.lengths[part[0]]))
                batches.append(part[:size])
                part = part[size:]
        return [batches[place] for place in generator.permutation(len(batches))]

    def epoch(self, number: int) -> Iterator[list[Crop]]:
        """The batches of one pass over the recordings.

        Args:
            number: of the pass, from 0.
        """
        for window in self.windows(number):
            yield from self.in_window(window)

    def count(self, epoch: int = 0) -> tuple[int, int]:
        """Batches of one pass, and samples that it hears."""
        batches = samples = 0
        for window in self.windows(epoch):
            for batch in self._cut(window):
                batches += 1
                samples += len(batch) * int(self.lengths[batch].min())
        return batches, samples

    def endless(self) -> Iterator[Window]:
        """The windows of one pass after the other."""
        number = 0
        while True:
            yield from self.windows(number)
            number += 1

    def __iter__(self) -> Iterator[list[Crop]]:
        for window in self.endless():
            yield from self.in_window(window)


class ShardedBatches:
    """The batches of one process: of every ``world_size`` batches one.

    A batch sampler for torch's ``DataLoader``. A process that accumulates two batches, and two processes with one batch
    each, take the same two.

    Args:
        batches: of all processes.
        length: number of batches of all processes; a multiple of ``world_size``.
        rank: of the process.
        world_size: number of processes.
        ahead: told at the beginning of each window which shards are needed now and next.
    """

    def __init__(
        self,
        batches: BatchesBySeconds,
        length: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        ahead: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        if length % world_size:
            raise DataError(f"{length} batches cannot be divided among {world_size} processes evenly")
        self.batches, self.length, self.rank, self.world_size, self.ahead = batches, length, rank, world_size, ahead

    def __len__(self) -> int:
        return self.length // self.world_size

    def __iter__(self) -> Iterator[list[Crop]]:
        for number, batch in zip(range(self.length), self._all(), strict=False):
            if number % self.world_size == self.rank:
                yield batch

    def _all(self) -> Iterator[list[Crop]]:
        for window, following in pairwise(self.batches.endless()):
            if self.ahead is not None:
                self.ahead([*window.shards, *following.shards])
            yield from self.batches.in_window(window)
