"""Waveforms, tokens and masks of a split, in batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mambavox.asr.model import collate_waveforms, num_frames
from mambavox.data import Waveform
from mambavox.hubert import sample_span_mask
from mambavox.training.ctc.config import CtcConfig
from mambavox.training.splits import Split

_MAX_BYTES = 2 << 30
_PADDING = -100


class SpeechDataset(Dataset[dict[str, Any]]):
    """Waveform and tokens of each recording; waveforms are kept in memory while there is room.

    Args:
        split: the recordings.
        ids: their tokens.
        sampling_rate: of the waveforms in Hz.
        max_bytes: memory for waveforms.

    Attributes:
        epoch: number of the pass over the data, which the masks depend on.
    """

    def __init__(
        self, split: Split, ids: Sequence[Sequence[int]], sampling_rate: int, *, max_bytes: int = _MAX_BYTES
    ) -> None:
        self.split = split
        self.ids = ids
        self.sampling_rate = sampling_rate
        self.epoch = 0
        self._room = max_bytes
        self._kept: dict[int, Waveform] = {}

    def __len__(self) -> int:
        return len(self.split)

    @property
    def lengths(self) -> list[float]:
        """Seconds of each recording."""
        return self.split.seconds

    def waveform(self, index: int) -> Waveform:
        """One recording.

        Raises:
            AudioError: it cannot be read.
        """
        kept = self._kept.get(index)
        if kept is None:
            kept = self.split.examples[index].read(self.sampling_rate)
            if kept.nbytes <= self._room:
                self._room -= kept.nbytes
                self._kept[index] = kept
        return kept

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``waveform``, ``ids``, and what the masks are drawn from."""
        return {"waveform": self.waveform(index), "ids": self.ids[index], "draw": (self.epoch, index)}


class SpeechCollator:
    """Makes batches: a model's inputs, ``labels``, ``frames``, and in training the masks.

    Args:
        model: whose frames are counted.
        extractor: of the model.
        config: the widths and shares of the masks, and their seed.
    """

    def __init__(self, model: Any, extractor: Any, config: CtcConfig) -> None:
        self.model = model
        self.extractor = extractor
        self.config = config

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Batch some items."""
        batch = collate_waveforms([item["waveform"] for item in items], self.extractor, self.model.config)
        frames = torch.tensor([num_frames(self.model, len(item["waveform"])) for item in items])
        labels = [torch.tensor(list(item["ids"]), dtype=torch.int64) for item in items]
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=_PADDING)
        batch["frames"] = frames
        time = num_frames(self.model, batch["input_values"].shape[1])
        spans, channels = [], []
        for item, length in zip(items, frames, strict=True):
            generator = torch.Generator().manual_seed(_seed(self.config.seed, *item["draw"]))
            settings = self.config
            spans.append(
                sample_span_mask(
                    length[None], time, settings.mask_prob, settings.mask_length, min_masks=0, generator=generator
                )
            )
            width = self.model.config.hidden_size
            channels.append(
                sample_span_mask(
                    torch.tensor([width]),
                    width,
                    settings.mask_channel_prob,
                    min(settings.mask_channel_length, max(width // 4, 1)),
                    min_masks=0,
                    generator=generator,
                )
            )
        batch["time_mask"], batch["channel_mask"] = torch.cat(spans), torch.cat(channels)
        return batch


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
