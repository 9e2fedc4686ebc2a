"""Figures of a pre-training, added up on the device and over processes."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mambavox.hubert import MambaHubertForPreTrainingOutput


class Panel(NamedTuple):
    """One plot of figures.

    Attributes:
        title: of the plot.
        keys: figures that it shows.
        unit: of the figures.
    """

    title: str
    keys: tuple[str, ...]
    unit: str


class Figures(ABC):
    """Sums over batches, from which means are taken.

    Args:
        sums: how many sums there are.
        device: where batches are.
        sampling_rate: Hz.

    Attributes:
        panels: what a plot of the figures shows.
    """

    panels: Sequence[Panel]

    def __init__(self, sums: int, device: torch.device, sampling_rate: int) -> None:
        self.sampling_rate = sampling_rate
        self._sums = torch.zeros(sums, dtype=torch.float64, device=device)
        self._samples = 0
        self._start = time.perf_counter()

    @abstractmethod
    def add(self, output: Any, labels: Tensor, samples: int) -> None:
        """Count a batch; nothing here waits for the device.

        Args:
            output: of the model.
            labels: ``(batch, time)`` targets of frames, -100 where there is none.
            samples: of the batch.
        """

    @abstractmethod
    def means(self, sums: Tensor) -> dict[str, float]:
        """The figures that sums give."""

    @staticmethod
    @abstractmethod
    def training_line(logs: Mapping[str, float]) -> str:
        """What is told of some updates."""

    @staticmethod
    @abstractmethod
    def valid_line(figures: Mapping[str, float]) -> str:
        """What is told of the held-back recordings."""

    def take(self) -> dict[str, float]:
        """The means since the last time, over all processes, with hours and speed; begins anew."""
        merged = torch.cat([self._sums, self._sums.new_tensor([self._samples])])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(merged)
        merged = merged.cpu()
        hours, seconds = merged[-1].item() / self.sampling_rate / 3600, time.perf_counter() - self._start
        self._sums.zero_()
        self._samples = 0
        self._start = time.perf_counter()
        return {**self.means(merged[:-1]), "hours": hours, "hours_an_hour": hours / max(seconds / 3600, 1e-9)}

    def pause(self) -> float:
        """The time now, for :meth:`go_on`."""
        return time.perf_counter()

    def go_on(self, since: float) -> None:
        """Leave the time since then out of the speed."""
        self._start += time.perf_counter() - since


_UNIT_SUMS = ("items", "correct", "prediction_loss", "feature_penalty")


class UnitFigures(Figures):
    """Figures of the prediction of units behind masks.

    Args:
        num_clusters: number of units.
        device: where batches are.
        sampling_rate: Hz.
    """

    panels = (
        Panel("loss of hidden frames", ("prediction_loss",), "nats"),
        Panel("accuracy on hidden frames", ("masked_accuracy",), "share"),
        Panel("perplexity of units", ("perplexity",), "units"),
    )

    def __init__(self, num_clusters: int, device: torch.device, sampling_rate: int) -> None:
        super().__init__(len(_UNIT_SUMS) + 2 * num_clusters, device, sampling_rate)
        counts = self._sums[len(_UNIT_SUMS) :]
        self._predicted, self._wanted = counts.chunk(2)

    @torch.no_grad()
    def add(self, output: MambaHubertForPreTrainingOutput, labels: Tensor, samples: int) -> None:
        """Count a batch's hidden frames."""
        assert output.logits is not None and output.prediction_loss is not None and output.feature_penalty is not None
        assert output.mask_time_indices is not None
        hidden = (labels != -100) & output.mask_time_indices
        weight = hidden.double().flatten()
        predicted = output.logits.argmax(dim=-1)
        items = weight.sum()
        self._sums[: len(_UNIT_SUMS)] += torch.stack(
            [
                items,
                ((predicted == labels) & hidden).sum(),
                output.prediction_loss.double() * items,
                output.feature_penalty.double() * items,
            ]
        )
        self._predicted.index_add_(0, predicted.flatten(), weight)
        self._wanted.index_add_(0, labels.clamp(min=0).flatten(), weight)
        self._samples += samples

    def means(self, sums: Tensor) -> dict[str, float]:
        """Perplexity is two to the entropy of the units in bits: how many units are in use."""
        named = dict(zip(_UNIT_SUMS, sums[: len(_UNIT_SUMS)].tolist(), strict=True))
        predicted, wanted = sums[len(_UNIT_SUMS) :].chunk(2)
        items = max(named["items"], 1.0)
        return {
            "masked_accuracy": named["correct"] / items,
            "prediction_loss": named["prediction_loss"] / items,
            "feature_penalty": named["feature_penalty"] / items,
            "perplexity": _perplexity(predicted),
            "target_perplexity": _perplexity(wanted),
        }

    @staticmethod
    def training_line(logs: Mapping[str, float]) -> str:
        """Accuracy, and the units in use of those wanted."""
        return (
            f"accuracy {100 * logs['masked_accuracy']:.1f} %  "
            f"units {logs['perplexity']:.0f}/{logs['target_perplexity']:.0f}"
        )

    @staticmethod
    def valid_line(figures: Mapping[str, float]) -> str:
        """Accuracy, loss and units."""
        return (
            f"{figures['masked_accuracy']:.2%} of hidden frames right, loss {figures['prediction_loss']:.3f}, "
            f"units {figures['perplexity']:.0f}/{figures['target_perplexity']:.0f}"
        )


def _perplexity(counts: Tensor) -> float:
    shares = counts / counts.sum().clamp(min=1)
    return float(torch.exp(torch.special.entr(shares).sum()))
