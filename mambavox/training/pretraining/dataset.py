"""What a pre-training step hears: crops, their units and the frames to hide."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mambavox.data.batching import Crop
from mambavox.errors import DataError
from mambavox.hubert import MambaHubertConfig, sample_span_mask
from mambavox.training.pretraining.recordings import Recordings
from mambavox.units.labels import UnitLabels

_MISSING_SECONDS = 0.1  # that targets may be shorter or longer than their recording: other models pad and cut


class Crops(Dataset[dict[str, Any]], ABC):
    """Crops of recordings.

    What is heard of a recording depends on the seed, the epoch and the recording alone.

    Args:
        recordings: what to crop.
        config: of the model.
        seed: numbers.
    """

    def __init__(self, recordings: Recordings, config: MambaHubertConfig, seed: Sequence[int]) -> None:
        self.recordings, self.config, self.seed = recordings, config, tuple(seed)
        self.hop = config.inputs_to_logits_ratio

    def __len__(self) -> int:
        return len(self.recordings.keys)

    @abstractmethod
    def __getitem__(self, crop: Crop) -> dict[str, Any]:
        """What is heard of a crop.

        Raises:
            AudioError: the recording cannot be read.
        """

    def _generator(self, crop: Crop) -> np.random.Generator:
        return np.random.default_rng((*self.seed, crop.epoch, crop.index))

    def _first_frame(self, crop: Crop, generator: np.random.Generator) -> int:
        """Crops begin where a frame of the whole recording does, so that units need no rounding."""
        return int(generator.integers(0, (self.recordings.lengths[crop.index] - crop.samples) // self.hop + 1))

    def _time(self, crop: Crop) -> int:
        """Frames of a crop."""
        return (crop.samples - self.config.receptive_field) // self.hop + 1


class CropDataset(Crops):
    """Crops of recordings with units and masks.

    Args:
        recordings: what to crop.
        labels: units of the recordings.
        config: of the model.
        seed: of crops and masks: numbers.

    Raises:
        DataError: a recording has no units, or their number does not fit its length.
    """

    def __init__(
        self, recordings: Recordings, labels: UnitLabels, config: MambaHubertConfig, seed: Sequence[int]
    ) -> None:
        super().__init__(recordings, config, seed)
        self.labels = labels
        for key, length in zip(recordings.keys, recordings.lengths, strict=True):
            units = len(labels[key])
            seconds, expected = units / labels.frame_rate, length / config.sampling_rate
            if abs(seconds - expected) > _MISSING_SECONDS:
                raise DataError(
                    f"{key}: is {expected:.2f} s long, but its targets are {seconds:.2f} s ({units} at "
                    f"{labels.frame_rate:g} Hz) and so of another recording; begin anew with --overwrite"
                )

    def __getitem__(self, crop: Crop) -> dict[str, Any]:
        """``waveform`` ``(samples,)``, ``mask`` ``(time,)`` and ``labels`` ``(time,)``.

        Labels are -100 where nothing is hidden, but for a model with ``unmasked_weight``.

        Raises:
            AudioError: the recording cannot be read.
        """
        generator = self._generator(crop)
        first, time = self._first_frame(crop, generator), self._time(crop)
        mask = sample_span_mask(
            torch.tensor([time]),
            time,
            self.config.mask_prob,
            self.config.mask_length,
            generator=torch.Generator().manual_seed(int(generator.integers(1 << 62))),
        )[0]
        labels = torch.from_numpy(
            frame_units(self.labels, self.recordings.keys[crop.index], first, time, self.config.frame_rate)
        )
        return {
            "waveform": self.recordings.read(crop.index, first * self.hop, crop.samples),
            "mask": mask,
            "labels": labels if self.config.unmasked_weight else labels.masked_fill(~mask, -100),
        }


def frame_units(labels: UnitLabels, key: str, first: int, time: int, frame_rate: float) -> NDArray[np.int64]:
    """Units of a model's frames.

    Units at a higher rate are thinned: frame ``t`` takes unit ``round(t * labels.frame_rate / frame_rate)``. With MFCC
    at 100 Hz (25 ms windows that begin every 10 ms with the recording) and frames at 50 Hz (25 ms every 20 ms) the two
    windows are the same.

    Args:
        labels: units of recordings.
        key: of the recording.
        first: first frame.
        time: number of frames.
        frame_rate: of the model, Hz.

    Returns:
        ``(time,)``; -100 beyond the last unit.

    Source:
        HuBERT's released code, ``feat2tar_ratio``.
    """
    units = labels[key]
    places = np.rint((first + np.arange(time)) * (labels.frame_rate / frame_rate)).astype(np.int64)
    return np.where(places < len(units), units[np.minimum(places, len(units) - 1)], -100).astype(np.int64)


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The model's keyword arguments for some items; with ``attention_mask`` only where there is padding.

    Args:
        items: of a :class:`CropDataset`.
    """
    lengths = [len(item["waveform"]) for item in items]
    times = [len(item["mask"]) for item in items]
    batch = {
        "input_values": torch.zeros(len(items), max(lengths)),
        "mask_time_indices": torch.zeros(len(items), max(times), dtype=torch.bool),
        "labels": torch.full((len(items), max(times)), -100),
    }
    for row, item in enumerate(items):
        batch["input_values"][row, : lengths[row]] = torch.from_numpy(item["waveform"])
        batch["mask_time_indices"][row, : times[row]] = item["mask"]
        batch["labels"][row, : times[row]] = item["labels"]
    if min(lengths) < max(lengths):
        batch["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return batch
