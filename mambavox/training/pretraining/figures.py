"""Figures of a pre-training, added up on the device and over processes."""

import time

import torch
import torch.distributed as dist
from torch import Tensor

from mambavox.hubert import MambaHubertForPreTrainingOutput

_SUMS = ("items", "correct", "prediction_loss", "feature_penalty", "samples")


class Figures:
    """Sums over batches, from which means are taken.

    Args:
        num_clusters: number of units.
        device: where batches are.
        sampling_rate: Hz.
    """

    def __init__(self, num_clusters: int, device: torch.device, sampling_rate: int) -> None:
        self.sampling_rate = sampling_rate
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self._predicted = torch.zeros(num_clusters, dtype=torch.float64, device=device)
        self._wanted = torch.zeros(num_clusters, dtype=torch.float64, device=device)
        self._start = time.perf_counter()

    @torch.no_grad()
    def add(self, output: MambaHubertForPreTrainingOutput, labels: Tensor, samples: int) -> None:
        """Count a batch; nothing here waits for the device.

        Args:
            output: of the model.
            labels: ``(batch, time)`` units of frames, -100 where there is none.
            samples: of the batch.
        """
        assert output.logits is not None and output.prediction_loss is not None and output.feature_penalty is not None
        assert output.mask_time_indices is not None
        hidden = (labels != -100) & output.mask_time_indices
        weight = hidden.double().flatten()
        predicted = output.logits.argmax(dim=-1)
        items = weight.sum()
        self._sums += torch.stack(
            [
                items,
                ((predicted == labels) & hidden).sum(),
                output.prediction_loss.double() * items,
                output.feature_penalty.double() * items,
                torch.full_like(items, samples),
            ]
        )
        self._predicted.index_add_(0, predicted.flatten(), weight)
        self._wanted.index_add_(0, labels.clamp(min=0).flatten(), weight)

    def take(self) -> dict[str, float]:
        """The means since the last time, over all processes; begins anew.

        Perplexity is two to the entropy of the units in bits: how many units are in use.
        """
        merged = torch.cat([self._sums, self._predicted, self._wanted])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(merged)
        merged = merged.cpu()
        sums = dict(zip(_SUMS, merged[: len(_SUMS)].tolist(), strict=True))
        predicted, wanted = merged[len(_SUMS) :].chunk(2)
        items = max(sums["items"], 1.0)
        hours, seconds = sums["samples"] / self.sampling_rate / 3600, time.perf_counter() - self._start
        for total in (self._sums, self._predicted, self._wanted):
            total.zero_()
        self._start = time.perf_counter()
        return {
            "masked_accuracy": sums["correct"] / items,
            "prediction_loss": sums["prediction_loss"] / items,
            "feature_penalty": sums["feature_penalty"] / items,
            "perplexity": _perplexity(predicted),
            "target_perplexity": _perplexity(wanted),
            "hours": hours,
            "hours_an_hour": hours / max(seconds / 3600, 1e-9),
        }

    def pause(self) -> float:
        """The time now, for :meth:`go_on`."""
        return time.perf_counter()

    def go_on(self, since: float) -> None:
        """Leave the time since then out of the speed."""
        self._start += time.perf_counter() - since


def _perplexity(counts: Tensor) -> float:
    shares = counts / counts.sum().clamp(min=1)
    return float(torch.exp(torch.special.entr(shares).sum()))
