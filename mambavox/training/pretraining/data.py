"""What a pre-training step hears: crops, their units and the frames to hide."""

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


class CropDataset(Dataset[dict[str, Any]]):
    """Crops of recordings with units and masks.

    Where a crop begins and which frames are hidden depends on the seed, the epoch and the recording alone.

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
        self.recordings, self.labels, self.config, self.seed = recordings, labels, config, tuple(seed)
        self.hop = config.inputs_to_logits_ratio
        units = labels.frames[recordings.places]
        seconds, expected = units / labels.frame_rate, recordings.lengths / config.sampling_rate
        wrong = np.flatnonzero(np.abs(seconds - expected) > _MISSING_SECONDS)
        if len(wrong):
            first = int(wrong[0])
            raise DataError(
                f"{recordings.key(first)}: is {expected[first]:.2f} s long, but its targets are {seconds[first]:.2f} "
                f"s ({units[first]} at {labels.frame_rate:g} Hz) and so of another recording; begin anew with "
                "--overwrite"
            )

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, crop: Crop) -> dict[str, Any]:
        """``waveform`` ``(samples,)``, ``mask`` ``(time,)`` and ``labels`` ``(time,)``.

        Labels are -100 where nothing is hidden, but for a model with ``unmasked_weight``.

        Raises:
            AudioError: the recording cannot be read.
        """
        key, length = self.recordings.key(crop.index), int(self.recordings.lengths[crop.index])
        generator = np.random.default_rng((*self.seed, crop.epoch, crop.index))
        # Crops begin where a frame of the whole recording does, so that units need no rounding.
        first = int(generator.integers(0, (length - crop.samples) // self.hop + 1))
        time = (crop.samples - self.config.receptive_field) // self.hop + 1
        mask = sample_span_mask(
            torch.tensor([time]),
            time,
            self.config.mask_prob,
            self.config.mask_length,
            generator=torch.Generator().manual_seed(int(generator.integers(1 << 62))),
        )[0]
        units = self.labels.at(int(self.recordings.places[crop.index]), key)
        labels = torch.from_numpy(frame_units(units, first, time, self.labels.frame_rate / self.config.frame_rate))
        return {
            "waveform": self.recordings.read(crop.index, first * self.hop, crop.samples),
            "mask": mask,
            "labels": labels if self.config.unmasked_weight else labels.masked_fill(~mask, -100),
        }


def frame_units(units: NDArray[np.int32], first: int, time: int, per_frame: float) -> NDArray[np.int64]:
    """Units of a model's frames.

    Units at a higher rate are thinned: frame ``t`` takes unit ``round(t * per_frame)``. With MFCC
    at 100 Hz (25 ms windows that begin every 10 ms with the recording) and frames at 50 Hz (25 ms every 20 ms) the two
    windows are the same.

    Args:
        units: of the whole recording.
        first: first frame.
        time: number of frames.
        per_frame: units a frame of the model.

    Returns:
        ``(time,)``; -100 beyond the last unit.

    Source:
        HuBERT's released code, ``feat2tar_ratio``.
    """
    places = np.rint((first + np.arange(time)) * per_frame).astype(np.int64)
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


class WaveformCrops(Dataset[dict[str, Any]]):
    """Crops of recordings, nothing else; where a crop begins is as in :class:`CropDataset`.

    Args:
        recordings: what to crop.
        config: of the model.
        seed: numbers.
    """

    def __init__(self, recordings: Recordings, config: MambaHubertConfig, seed: Sequence[int]) -> None:
        self.recordings, self.config, self.seed = recordings, config, tuple(seed)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, crop: Crop) -> dict[str, Any]:
        """``waveform`` ``(samples,)`` and its number of frames, ``time``.

        Raises:
            AudioError: the recording cannot be read.
        """
        hop, length = self.config.inputs_to_logits_ratio, int(self.recordings.lengths[crop.index])
        generator = np.random.default_rng((*self.seed, crop.epoch, crop.index))
        first = int(generator.integers(0, (length - crop.samples) // hop + 1))
        return {
            "waveform": self.recordings.read(crop.index, first * hop, crop.samples),
            "time": (crop.samples - self.config.receptive_field) // hop + 1,
        }
