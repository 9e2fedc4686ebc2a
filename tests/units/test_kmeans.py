import tracemalloc

import numpy as np
import pytest

from mambavox.errors import ConfigError, DataError
from mambavox.units import UnitQuantizer
from mambavox.units.kmeans import _fill, _shuffled


def blobs(frames=3000, clusters=5, dim=4, seed=0):
    """Frames around well separated centres, and the centres."""
    generator = np.random.default_rng(seed)
    centers = 20 * generator.standard_normal((clusters, dim))
    frames = centers[generator.integers(clusters, size=frames)] + 0.1 * generator.standard_normal((frames, dim))
    return frames.astype(np.float32), centers.astype(np.float32)


def batches(frames, size=100):
    return [frames[start : start + size] for start in range(0, len(frames), size)]


@pytest.mark.parametrize("buffer_bytes", [1 << 20, 1 << 13])
def test_centres_are_found_in_memory_and_in_a_stream(buffer_bytes):
    frames, centers = blobs()
    quantizer = UnitQuantizer.fit(batches(frames), 5, 0, batch_frames=200, buffer_bytes=buffer_bytes)
    distances = np.linalg.norm(quantizer.centers[:, None] - centers, axis=2)
    assert sorted(distances.argmin(axis=1)) == [0, 1, 2, 3, 4] and distances.min(axis=1).max() < 0.1
    assert quantizer.metadata.frames_seen == len(frames)
    assert quantizer.metadata.inertia == pytest.approx(4 * 0.01, rel=0.2)
    assert (quantizer.metadata.passes > 1) == (buffer_bytes == 1 << 20)


def test_a_stream_leaves_the_buffer_whole_and_in_another_order():
    frames = np.arange(1000, dtype=np.float32)[:, None]
    stream = iter(batches(frames, 70))
    buffer, first = _fill(stream, 100, 4 * 300)
    left = list(_shuffled(buffer, first, stream, 100, np.random.default_rng(0)))
    assert [len(batch) for batch in left] == [100] * 10
    together = np.concatenate(left)[:, 0]
    np.testing.assert_array_equal(np.sort(together), frames[:, 0])
    # Nothing leaves before it has come, and frames wait long enough to lose their neighbours.
    assert all(batch.max() < 280 + 170 * (number + 1) for number, batch in enumerate(left))
    assert (np.abs(np.diff(together)) == 1).mean() < 0.05


def test_units_are_the_nearest_centres():
    frames, _ = blobs(500)
    quantizer = UnitQuantizer.fit([frames], 7, 0)
    expected = np.linalg.norm(frames[:, None].astype(np.float64) - quantizer.centers, axis=2).argmin(axis=1)
    units = quantizer(frames)
    np.testing.assert_array_equal(units, expected)
    assert units.dtype == np.int32
    assert quantizer(frames[:0]).shape == (0,)


def test_in_memory_it_is_as_good_as_sklearns_own_fit():
    from sklearn.cluster import MiniBatchKMeans

    frames = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32)
    own = UnitQuantizer.fit(batches(frames), 20, 0, batch_frames=500)
    theirs = MiniBatchKMeans(20, batch_size=500, n_init=20, reassignment_ratio=0, random_state=0).fit(frames)
    distances = np.linalg.norm(frames[:, None] - own.centers, axis=2).min(axis=1) ** 2
    assert distances.sum() < 1.02 * theirs.inertia_


def test_the_seed_decides():
    frames = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    for buffer_bytes in (1 << 20, 1 << 12):
        first, again, other = (
            UnitQuantizer.fit(batches(frames), 6, seed, batch_frames=100, buffer_bytes=buffer_bytes)
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first.centers, again.centers)
        assert not np.array_equal(first.centers, other.centers)


def test_features_are_never_all_in_memory():
    generator = np.random.default_rng(0)
    size = 500 * 64 * 4

    def stream():
        for _ in range(400):
            yield generator.standard_normal((500, 64)).astype(np.float32)

    tracemalloc.start()
    UnitQuantizer.fit(stream(), 4, 0, batch_frames=1000, buffer_bytes=10 * size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The stream is 51 MB; the buffer is 1.3 MB, and k-means++ samples at most as much again.
    assert peak < 100 * size


def test_saved_and_loaded_it_is_the_same(tmp_path):
    frames, _ = blobs(500)
    quantizer = UnitQuantizer.fit([frames], 5, 3, source="runs/it1:6", frame_rate=50.0, fingerprint="ab")
    quantizer.save(tmp_path)
    loaded = UnitQuantizer.load(tmp_path)
    np.testing.assert_array_equal(loaded.centers, quantizer.centers)
    assert loaded.metadata == quantizer.metadata
    assert (loaded.metadata.source, loaded.metadata.layer, loaded.metadata.seed) == ("runs/it1:6", 6, 3)
    np.testing.assert_array_equal(loaded(frames), quantizer(frames))


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"kmeans\.json"):
        UnitQuantizer.load(tmp_path)
    UnitQuantizer.fit([blobs(100)[0]], 5, 0).save(tmp_path)
    weights = tmp_path / "kmeans.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(DataError, match="no quantizer that can be read"):
        UnitQuantizer.load(tmp_path)


def test_bad_input_says_so():
    frames = blobs(100)[0]
    with pytest.raises(ConfigError, match="num_clusters=0"):
        UnitQuantizer.fit([frames], 0, 0)
    with pytest.raises(DataError, match="100 frames for 101 clusters"):
        UnitQuantizer.fit([frames], 101, 0)
    with pytest.raises(DataError, match="0 frames"):
        UnitQuantizer.fit([], 3, 0)
    with pytest.raises(DataError, match=r"shape \(100, 3\)"):
        UnitQuantizer.fit([frames, frames[:, :3]], 5, 0)
    with pytest.raises(DataError, match="NaN"):
        UnitQuantizer.fit([np.where(frames > 0, frames, np.nan)], 5, 0)
    quantizer = UnitQuantizer.fit([frames], 5, 0)
    with pytest.raises(DataError, match=r"\(time, 4\)"):
        quantizer(frames[:, :3])
