"""The order in which recordings are heard: it depends on the seed and the epoch alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

_BATCHES_SORTED = 50  # at a time: enough for similar lengths, few enough for other neighbours in each epoch


class EpochSampler(Sampler[int]):
    """A random order that depends on the seed and the epoch alone, so that a resumed run sees the same one.

    Args:
        dataset: has a length and, for buckets, ``lengths`` of its recordings; is told the epoch, too.
        seed: of the order.
        bucketed: size of the batches that are to hold recordings of like length; ``None``: any recordings.
        classes: class of each recording, to draw all classes equally often; ``None`` draws each recording once.
    """

    def __init__(
        self, dataset: Any, seed: int, bucketed: int | None = None, classes: Sequence[int] | None = None
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.bucketed = bucketed
        self.classes = classes

    def set_epoch(self, epoch: int) -> None:
        """Begin another pass over the data; accelerate calls this."""
        self.dataset.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.dataset.epoch))
        if self.classes is None:
            order = generator.permutation(len(self.dataset)).tolist()
        else:
            order = draw_classes_alike(self.classes, generator)
        if self.bucketed is None:
            return iter(order)
        return iter(bucket_by_length(order, self.dataset.lengths, self.bucketed, generator))


def draw_classes_alike(classes: Sequence[int], generator: np.random.Generator) -> list[int]:
    """A random order, as long as there are recordings, in which all classes occur equally often, to one.

    Of a class none is drawn again before all of it are; of a large class, some are not drawn.

    Args:
        classes: of each recording.
        generator: draws.
    """
    found, places = np.unique(np.asarray(classes), return_inverse=True)
    shares = np.full(len(found), len(places) // len(found))
    shares[generator.permutation(len(found))[: len(places) % len(found)]] += 1  # anew in each epoch
    drawn = []
    for number, share in enumerate(shares.tolist()):
        rows = np.flatnonzero(places == number)
        rounds = [generator.permutation(rows) for _ in range(-(-share // len(rows)))]
        drawn.append(np.concatenate(rounds)[:share])
    order: list[int] = generator.permutation(np.concatenate(drawn)).tolist()
    return order


def bucket_by_length(
    order: Sequence[int], lengths: Sequence[float], batch_size: int, generator: np.random.Generator
) -> list[int]:
    """Change a random order so that batches hold recordings of like length.

    Stretches of it are sorted by length and cut into batches, whose order is drawn: the recordings of a batch still
    differ from epoch to epoch.

    Args:
        order: indices of the recordings.
        lengths: of each recording.
        batch_size: recordings a batch; the last one of an epoch may be smaller, and stays the last.
        generator: draws the order of the batches.
    """
    stretch = batch_size * _BATCHES_SORTED
    ordered: list[int] = []
    for start in range(0, len(order), stretch):
        ordered += sorted(order[start : start + stretch], key=lambda index: lengths[index])
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    partial = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
    shuffled = [batches[index] for index in generator.permutation(len(batches))]
    return [index for batch in (*shuffled, *partial) for index in batch]
