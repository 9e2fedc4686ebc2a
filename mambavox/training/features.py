"""Features of recordings, made once and kept in memory; masks on them in training."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mambavox.data import Example, duration
from mambavox.errors import DataError
from mambavox.training.front_end import FrontEnd

_MAX_BYTES = 2 << 30
# The paper's widths on ESC-50 (24 of 128 bands, 80 of 500 frames), as shares so that they fit any front end.
_MEL_SHARE = 24 / 128
_TIME_SHARE = 80 / 500


class FeatureDataset(Dataset[dict[str, Any]]):
    """Features and class of each recording.

    Features are made when first asked for and kept while there is room; each process keeps its own.

    Args:
        examples: the recordings.
        labels: the classes, in the order of the logits; ``None`` for recordings without a class.
        front_end: makes the features.
        spec_augment: mask one band of mel bins and one stretch of frames, anew each epoch.
        seed: of the masks.
        max_bytes: memory for features.

    Attributes:
        epoch: number of the pass over the data, which the masks depend on.

    Raises:
        DataError: a recording has a class that is not in ``labels``.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        labels: Sequence[str] | None,
        front_end: FrontEnd,
        *,
        spec_augment: bool = False,
        seed: int = 0,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        self.examples = examples
        self.targets = None if labels is None else class_indices(examples, labels)
        self.front_end = front_end
        self.spec_augment = spec_augment
        self.seed = seed
        self.max_bytes = max_bytes
        self.epoch = 0
        self._kept: dict[int, tuple[NDArray[np.float32], int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def lengths(self) -> list[float]:
        """Seconds of each recording that are heard."""
        longest = self.front_end.crop_seconds
        return [min(duration(example.source), longest) for example in self.examples]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``features`` of one recording and, where there are labels, its ``target``.

        Raises:
            AudioError: the recording cannot be read.
        """
        features, frames = self._features(index)
        if self.spec_augment:
            features = mask_spectrogram(
                features, frames, self.front_end.mel_axis or 0, np.random.default_rng((self.seed, self.epoch, index))
            )
        item: dict[str, Any] = {"features": features}
        if self.targets is not None:
            item["target"] = self.targets[index]
        return item

    def forget_features(self) -> None:
        """Make room: features are made anew when they are asked for again."""
        self._kept.clear()
        self._bytes = 0

    def _features(self, index: int) -> tuple[NDArray[np.float32], int]:
        kept = self._kept.get(index)
        if kept is None:
            waveform = self.examples[index].read(self.front_end.sampling_rate)
            kept = self.front_end.features(waveform), self.front_end.num_frames(len(waveform))
            if self._bytes + kept[0].nbytes <= self.max_bytes:
                self._kept[index] = kept
                self._bytes += kept[0].nbytes
        return kept


def mask_spectrogram(
    spectrogram: NDArray[np.float32], frames: int, mel_axis: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Overwrite one random band of mel bins and one random stretch of frames with the mean (SpecAugment).

    Args:
        spectrogram: two-dimensional.
        frames: how many of its frames hold sound; the rest is padding and is left alone.
        mel_axis: its axis of mel bins.
        generator: draws widths and places.

    Returns:
        A masked copy.

    Source:
        Park et al. 2019 (arXiv 1904.08779), without time warping; at most 24 of 128 bands and 80 of 500 frames, as in
        the MambAdapter code.
    """
    masked = spectrogram.copy()
    view = masked if mel_axis == 1 else masked.T
    sound = view[:frames]
    fill = sound.mean()
    for axis, share in ((1, _MEL_SHARE), (0, _TIME_SHARE)):
        size = sound.shape[axis]
        width = int(generator.integers(0, round(share * size) + 1))
        start = int(generator.integers(0, size - width + 1))
        sound[(slice(None),) * axis + (slice(start, start + width),)] = fill
    return masked


class Collator:
    """Makes a batch of a data set's items: the model's keyword arguments, and ``labels`` where there are targets.

    Args:
        front_end: batches the features.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end = front_end

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Batch some items."""
        batch = self.front_end.collate([item["features"] for item in items])
        if "target" in items[0]:
            batch["labels"] = torch.tensor([item["target"] for item in items])
        return batch


def class_indices(examples: Sequence[Example], labels: Sequence[str]) -> list[int]:
    """Class of each recording as an index into the labels.

    Args:
        examples: the recordings.
        labels: the classes.

    Raises:
        DataError: a recording has another class.
    """
    index = {label: number for number, label in enumerate(labels)}
    unknown = sorted({str(example.label) for example in examples if example.label not in index})
    if unknown:
        raise DataError(
            f"classes that the model was not trained on: {', '.join(unknown)}; it knows {', '.join(labels)}"
        )
    return [index[str(example.label)] for example in examples]
