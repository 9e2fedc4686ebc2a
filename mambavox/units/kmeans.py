"""Units as clusters of frames: k-means fitted while features stream past."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin_min

from mambavox.errors import ConfigError, DataError
from mambavox.files import replacing, to_json, write_atomically

WEIGHTS_FILE = "kmeans.safetensors"
METADATA_FILE = "kmeans.json"

_BATCH_FRAMES = 10_000
_BUFFER_BYTES = 256 << 20
_INIT_FRAMES = 10_000  # at least; 20 a cluster where that is more
_INIT_TRIALS = 3
_MAX_PASSES = 100
_PATIENCE = 3  # passes without progress
_PROGRESS = 1e-4  # of the inertia
_ASSIGNED = 1 << 22  # distances at a time


@dataclass(frozen=True)
class QuantizerMetadata:
    """Where a quantizer comes from.

    Attributes:
        source: name of the features, ``"mfcc"`` or ``"MODEL:LAYER"``.
        frame_rate: of the features, frames a second.
        dim: of a frame.
        num_clusters: number of units.
        frames_seen: frames that it was fitted on.
        passes: how often each of them was seen.
        inertia: mean squared distance of a frame to its unit's centre, over the last pass.
        seed: of the fit.
        fingerprint: of the weights of the features' model.
        mambavox: version that fitted it.
    """

    source: str
    frame_rate: float
    dim: int
    num_clusters: int
    frames_seen: int
    passes: int
    inertia: float
    seed: int
    fingerprint: str
    mambavox: str

    @property
    def layer(self) -> int | None:
        """Layer of the model; ``None`` of MFCC."""
        layer = self.source.rpartition(":")[2]
        return int(layer) if layer.isdecimal() else None


class UnitQuantizer:
    """Turns frames into units, the nearest of ``num_clusters`` centres.

    Args:
        centers: ``(num_clusters, dim)``.
        metadata: where they come from.
    """

    def __init__(self, centers: NDArray[np.float32], metadata: QuantizerMetadata) -> None:
        self.centers = np.ascontiguousarray(centers, dtype=np.float32)
        self.metadata = metadata
        self._squares = (self.centers.astype(np.float64) ** 2).sum(axis=1).astype(np.float32)

    @property
    def num_clusters(self) -> int:
        """Number of units."""
        return len(self.centers)

    @classmethod
    def fit(
        cls,
        batches: Iterable[NDArray[np.float32]],
        num_clusters: int,
        seed: int,
        *,
        source: str = "",
        frame_rate: float = 0.0,
        fingerprint: str = "",
        batch_frames: int = _BATCH_FRAMES,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> "UnitQuantizer":
        """Fit to features, which are taken once and never held all at a time.

        A buffer is filled; k-means++ on it gives the first centres. Then frames leave the buffer in random order, in
        batches for ``MiniBatchKMeans.partial_fit``, while others take their places. Where all frames fit into the
        buffer they are gone through until the inertia falls no more.

        Args:
            batches: features, each ``(time, dim)``.
            num_clusters: number of units.
            seed: of the first centres and of the order.
            source: name of the features.
            frame_rate: of the features.
            fingerprint: of their model.
            batch_frames: frames of a step.
            buffer_bytes: size of the buffer.

        Raises:
            ConfigError: ``num_clusters`` is below 1.
            DataError: there are fewer frames than clusters, the features are of several sizes, or hold NaN.

        Source:
            The settings are those of HuBERT's code: mini-batches of 10000 frames, centres never put elsewhere.
        """
        if num_clusters < 1:
            raise ConfigError(f"num_clusters={num_clusters}; expected at least 1")
        generator = np.random.default_rng(seed)
        stream = _checked(batches)
        buffer, goes_on = _fill(stream, max(num_clusters, batch_frames), buffer_bytes)
        if len(buffer) < num_clusters:
            raise DataError(too_few_frames(len(buffer), num_clusters))
        model = MiniBatchKMeans(
            num_clusters,
            init=_first_centers(buffer, num_clusters, generator),
            n_init=1,
            batch_size=batch_frames,
            reassignment_ratio=0.0,
            random_state=int(generator.integers(1 << 31)),
        )
        if goes_on is None:
            frames_seen, passes, inertia = len(buffer), 0, np.inf
            centers, waited = buffer[:0], 0
            while passes < _MAX_PASSES and waited < _PATIENCE:
                order = generator.permutation(len(buffer))
                total = sum(
                    _step(model, buffer[order[start : start + batch_frames]])
                    for start in range(0, len(buffer), batch_frames)
                )
                passes += 1
                waited = 0 if total / frames_seen < inertia * (1 - _PROGRESS) else waited + 1
                if total / frames_seen < inertia:
                    inertia, centers = total / frames_seen, model.cluster_centers_.copy()
        else:
            passes, frames_seen, total = 1, 0, 0.0
            for batch in _shuffled(buffer, goes_on, stream, batch_frames, generator):
                total += _step(model, batch)
                frames_seen += len(batch)
            inertia, centers = total / frames_seen, model.cluster_centers_
        metadata = QuantizerMetadata(
            source=source,
            frame_rate=frame_rate,
            dim=buffer.shape[1],
            num_clusters=num_clusters,
            frames_seen=frames_seen,
            passes=passes,
            inertia=float(inertia),
            seed=seed,
            fingerprint=fingerprint,
            mambavox=_version(),
        )
        return cls(centers, metadata)

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.int32]:
        """Units of a recording.

        Args:
            features: ``(time, dim)``.

        Returns:
            ``(time,)``, each in ``0..num_clusters - 1``.

        Raises:
            DataError: the features are of another size, or hold NaN.
        """
        dim = self.centers.shape[1]
        if features.ndim != 2 or features.shape[1] != dim:
            raise DataError(
                f"features have shape {features.shape}; expected (time, {dim}), as the quantizer was fitted"
            )
        if not np.isfinite(features).all():
            raise DataError("features hold NaN or infinite values; the model that made them has diverged")
        rows = max(1, _ASSIGNED // self.num_clusters)
        blocks = [features[start : start + rows] for start in range(0, len(features), rows)]
        nearest = [np.argmin(self._squares - 2 * (block @ self.centers.T), axis=1) for block in blocks]
        return np.concatenate(nearest).astype(np.int32) if nearest else np.zeros(0, np.int32)

    def save(self, folder: Path) -> None:
        """Write ``kmeans.safetensors`` and ``kmeans.json`` into a folder, each at once."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS_FILE) as partial:
            save_file({"centers": self.centers}, partial)
        write_atomically(folder / METADATA_FILE, to_json(asdict(self.metadata)))

    @classmethod
    def load(cls, folder: Path) -> "UnitQuantizer":
        """Read what ``save`` wrote.

        Raises:
            DataError: the files are missing or damaged.
        """
        try:
            content: dict[str, Any] = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
            metadata = QuantizerMetadata(**{spec.name: content[spec.name] for spec in fields(QuantizerMetadata)})
            centers = load_file(folder / WEIGHTS_FILE)["centers"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise DataError(
                f"{folder}: holds no quantizer that can be read ({error}); expected {METADATA_FILE} and {WEIGHTS_FILE}"
            ) from error
        if centers.shape != (metadata.num_clusters, metadata.dim):
            raise DataError(
                f"{folder / WEIGHTS_FILE}: centres of shape {centers.shape}; {METADATA_FILE} says "
                f"({metadata.num_clusters}, {metadata.dim})"
            )
        return cls(centers, metadata)


def too_few_frames(frames: int, num_clusters: int) -> str:
    """Message about frames that are fewer than the units.

    Args:
        frames: there are.
        num_clusters: number of units.
    """
    return (
        f"{frames} frames for {num_clusters} clusters; expected at least as many frames: give more recordings, a "
        "larger part of them (--cluster-fraction of pretrain, --fraction of units), or fewer clusters (--num-clusters)"
    )


def _version() -> str:
    try:
        return version("mambavox")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"


def _checked(batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    dim = None
    for batch in batches:
        if batch.ndim != 2 or (dim is not None and batch.shape[1] != dim):
            raise DataError(f"features have shape {batch.shape}; expected (time, {dim or 'dim'}) in every batch")
        dim = batch.shape[1]
        if not np.isfinite(batch).all():
            raise DataError("features hold NaN or infinite values; the model that made them has diverged")
        if len(batch):
            yield np.ascontiguousarray(batch, dtype=np.float32)


def _fill(
    stream: Iterator[NDArray[np.float32]], least: int, buffer_bytes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The first frames, as many as the buffer holds, and the batch that no longer fits; ``None`` at the end."""
    held: list[NDArray[np.float32]] = []
    frames = 0
    for batch in stream:
        if frames >= least and (frames + len(batch)) * 4 * batch.shape[1] > buffer_bytes:
            return np.concatenate(held), batch
        held.append(batch)
        frames += len(batch)
    return np.concatenate(held) if held else np.zeros((0, 0), np.float32), None


def _first_centers(
    buffer: NDArray[np.float32], num_clusters: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """The best of some trials of k-means++ on a part of the buffer."""
    size = min(len(buffer), max(_INIT_FRAMES, 20 * num_clusters))
    best, least = buffer[:0], np.inf
    for _ in range(_INIT_TRIALS):
        sample = buffer[generator.choice(len(buffer), size, replace=False)]
        centers, _ = kmeans_plusplus(sample, num_clusters, random_state=int(generator.integers(1 << 31)))
        inertia = float((pairwise_distances_argmin_min(sample, centers)[1] ** 2).sum())
        if inertia < least:
            best, least = centers, inertia
    return best


def _shuffled(
    buffer: NDArray[np.float32],
    first: NDArray[np.float32],
    stream: Iterator[NDArray[np.float32]],
    batch_frames: int,
    generator: np.random.Generator,
) -> Iterator[NDArray[np.float32]]:
    """Frames in batches that leave a buffer at random and are replaced by those that come; then the rest of it."""
    waiting, count = [first], len(first)
    while True:
        while count >= batch_frames:
            arrived = np.concatenate(waiting)
            places = generator.choice(len(buffer), batch_frames, replace=False)
            leaving = buffer[places]
            buffer[places] = arrived[:batch_frames]
            waiting, count = [arrived[batch_frames:]], count - batch_frames
            yield leaving
        batch = next(stream, None)
        if batch is None:
            break
        waiting.append(batch)
        count += len(batch)
    order = generator.permutation(len(buffer) + count)
    rest = np.concatenate([buffer, *waiting])
    for start in range(0, len(rest), batch_frames):
        yield rest[order[start : start + batch_frames]]


def _step(model: MiniBatchKMeans, batch: NDArray[np.float32]) -> float:
    """One step; the sum of squared distances to the new centres."""
    model.partial_fit(batch)
    return float(model.inertia_)
