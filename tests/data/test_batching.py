"""Batches by seconds: every recording once an epoch, nothing padded, the same for any number of processes."""

from itertools import islice

import numpy as np
import pytest

from mambavox.data.batching import BatchesBySeconds, ShardedBatches
from mambavox.errors import DataError

LENGTHS = np.random.default_rng(0).integers(100, 3000, size=700).tolist()


def batches(seed: int = 0) -> BatchesBySeconds:
    return BatchesBySeconds(LENGTHS, batch_samples=8000, max_samples=2000, seed=seed)


def test_an_epoch_draws_every_recording_once() -> None:
    epoch = list(batches().epoch(3))
    assert sorted(crop.index for batch in epoch for crop in batch) == list(range(len(LENGTHS)))
    assert {crop.epoch for batch in epoch for crop in batch} == {3}


def test_a_batch_fits_and_needs_no_padding() -> None:
    for batch in batches().epoch(0):
        assert len({crop.samples for crop in batch}) == 1
        assert len(batch) * max(min(LENGTHS[crop.index], 2000) for crop in batch) <= 8000
        assert batch[0].samples == min(min(LENGTHS[crop.index], 2000) for crop in batch)


def test_recordings_of_like_length_lose_little() -> None:
    whole = sum(min(length, 2000) for length in LENGTHS)
    assert 0.97 * whole < batches().count()[1] <= whole


def test_epochs_and_seeds_differ() -> None:
    orders = [
        [crop.index for batch in epoch for crop in batch]
        for epoch in (batches().epoch(0), batches().epoch(1), batches(1).epoch(0))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    assert list(batches().epoch(1)) == list(batches().epoch(1))
    neighbours = [{frozenset(crop.index for crop in batch) for batch in batches().epoch(number)} for number in (0, 1)]
    assert len(neighbours[0] & neighbours[1]) < len(neighbours[0]) / 10


def test_one_recording_longer_than_a_batch_is_a_batch() -> None:
    alone = BatchesBySeconds([9000, 50], batch_samples=100, max_samples=9000, seed=0)
    assert sorted(len(batch) for batch in alone.epoch(0)) in ([1, 1], [2])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_same_sequence(world_size: int) -> None:
    length = 12 * batches().count()[0] // 6  # two epochs
    length -= length % 6
    shards = [list(ShardedBatches(batches(), length, rank, world_size)) for rank in range(world_size)]
    assert [len(shard) for shard in shards] == [length // world_size] * world_size
    assert [batch for together in zip(*shards, strict=True) for batch in together] == list(islice(batches(), length))


def test_what_cannot_be_divided_is_told() -> None:
    with pytest.raises(DataError, match="no recordings"):
        BatchesBySeconds([], batch_samples=1, max_samples=1, seed=0)
    with pytest.raises(DataError, match="7 batches cannot be divided among 2"):
        ShardedBatches(batches(), 7, 0, 2)
