"""Batches by seconds: which recordings are heard together, how much of each, and in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


class BatchesBySeconds:
    """An endless sequence of batches, of which an update takes the same number each.

    In each epoch every recording is drawn once: recordings in a random order, stretches of which are sorted by length,
    are cut into batches, whose order is random again. A batch holds as many recordings as fit, each cropped to the
    shortest, so that nothing is padded (as HuBERT's code does); recordings of like length lose little. The sequence
    depends on the seed alone, so that it is the same for any number of processes and after a resumption.

    Args:
        lengths: samples of each recording.
        batch_samples: of a batch, at most.
        max_samples: of a recording that are heard at a time.
        seed: of the orders.

    Raises:
        DataError: there are no recordings.
    """

    def __init__(self, lengths: Sequence[int], *, batch_samples: int, max_samples: int, seed: int) -> None:
        if not len(lengths):
            raise DataError("no recordings to make batches of")
        self.lengths = np.minimum(np.asarray(lengths, dtype=np.int64), max_samples)
        self.batch_samples = max(batch_samples, int(self.lengths.max()))
        self.seed = seed
        # Recordings that make about a fixed number of batches.
        self._stretch = max(1, round(_BATCHES_SORTED * self.batch_samples / self.lengths.mean()))

    def epoch(self, number: int) -> list[list[Crop]]:
        """The batches of one pass over the recordings.

        Args:
            number: of the pass, from 0.
        """
        generator = np.random.default_rng((self.seed, number))
        order = generator.permutation(len(self.lengths))
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), self._stretch):
            part = order[start : start + self._stretch]
            # Longest first: the longest decides how many fit. A stable sort keeps equals in their random order.
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            while len(part):
                size = max(1, int(self.batch_samples // self.lengths[part[0]]))
                batches.append(part[:size])
                part = part[size:]
        return [
            [Crop(number, int(index), int(self.lengths[batches[place]].min())) for index in batches[place]]
            for place in generator.permutation(len(batches))
        ]

    def heard(self, epoch: int = 0) -> int:
        """Samples that one pass hears."""
        return sum(crop.samples for batch in self.epoch(epoch) for crop in batch)

    def __iter__(self) -> Iterator[list[Crop]]:
        number = 0
        while True:
            yield from self.epoch(number)
            number += 1


class ShardedBatches:
    """The batches of one process: of every ``world_size`` batches one.

    A batch sampler for torch's ``DataLoader``. A process that accumulates two batches, and two processes with one batch
    each, take the same two.

    Args:
        batches: of all processes.
        length: number of batches of all processes; a multiple of ``world_size``.
        rank: of the process.
        world_size: number of processes.
    """

    def __init__(self, batches: BatchesBySeconds, length: int, rank: int = 0, world_size: int = 1) -> None:
        if length % world_size:
            raise DataError(f"{length} batches cannot be divided among {world_size} processes evenly")
        self.batches, self.length, self.rank, self.world_size = batches, length, rank, world_size

    def __len__(self) -> int:
        return self.length // self.world_size

    def __iter__(self) -> Iterator[list[Crop]]:
        for number, batch in zip(range(self.length), self.batches, strict=False):
            if number % self.world_size == self.rank:
                yield batch
