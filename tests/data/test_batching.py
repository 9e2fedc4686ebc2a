"""Batches by seconds: every recording once an epoch, nothing padded, the same for any number of processes."""

from itertools import islice, pairwise

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


SHARDS = np.repeat(np.arange(3, 20), 42)[: len(LENGTHS)]


def windowed(shuffle_shards: int, shards: np.ndarray = SHARDS) -> BatchesBySeconds:
    return BatchesBySeconds(
        LENGTHS, batch_samples=8000, max_samples=2000, seed=0, shards=shards, shuffle_shards=shuffle_shards
    )


def test_one_window_is_no_window() -> None:
    assert list(islice(windowed(17), 900)) == list(islice(batches(), 900))
    assert list(windowed(50).epoch(1)) == list(batches().epoch(1))


@pytest.mark.parametrize("shuffle_shards", [1, 4, 16])
def test_a_window_draws_from_its_shards_alone(shuffle_shards: int) -> None:
    data = windowed(shuffle_shards)
    drawn = []
    for epoch in (0, 1):
        windows = data.windows(epoch)
        assert sorted(shard for window in windows for shard in window.shards) == list(range(3, 20))
        assert max(len(window.shards) for window in windows) <= shuffle_shards
        for window in windows:
            indices = [crop.index for batch in data.in_window(window) for crop in batch]
            assert set(SHARDS[indices]) == set(window.shards)
            drawn += indices
    assert sorted(drawn) == sorted([*range(len(LENGTHS)), *range(len(LENGTHS))])
    assert [window.shards for window in data.windows(0)] != [window.shards for window in data.windows(1)]
    assert data.count(1) == (
        len(list(data.epoch(1))),
        sum(crop.samples for batch in data.epoch(1) for crop in batch),
    )


@pytest.mark.parametrize("world_size", [1, 3])
def test_processes_share_windows(world_size: int) -> None:
    told: list[list[int]] = []
    length = 3 * (2 * windowed(4).count()[0] // 3)
    parts = [
        list(ShardedBatches(windowed(4), length, rank, world_size, ahead=None if rank else told.append))  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    assert [batch for group in zip(*parts, strict=True) for batch in group] == list(islice(windowed(4), length))
    windows = list(islice(windowed(4).endless(), len(told) + 1))
    assert told == [[*first.shards, *then.shards] for first, then in pairwise(windows)]


def test_shards_that_are_torn_apart_are_told() -> None:
    with pytest.raises(DataError, match="do not follow each other"):
        windowed(2, SHARDS[::-1])
