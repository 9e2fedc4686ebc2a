"""What a classifier learns and how it is scored: cross-entropy, accuracy, macro F1."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction

from mambavox.runs.predictions import probability_column
from mambavox.training.features import Collator, FeatureDataset
from mambavox.training.splits import Split


@dataclass(frozen=True)
class Scores:
    """Figures on one split of the data.

    Attributes:
        recordings: recordings.
        correct: how many were classified right.
        accuracy: share of them, 0 to 1.
        accuracy_low: lower end of its 95 % Wilson interval.
        accuracy_high: upper end.
        macro_f1: F1 averaged over the classes that occur, 0 to 1.
    """

    recordings: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def score(targets: Sequence[Any] | NDArray[Any], predictions: Sequence[Any] | NDArray[Any]) -> Scores:
    """Score predicted classes.

    Args:
        targets: right class of each recording, at least one.
        predictions: predicted class of each.

    Source:
        Wilson 1927, the interval that stays inside 0 to 1 and is right for small samples.
    """
    # Here, because both take seconds to import, which predicting need not wait for.
    from scipy.stats import binomtest
    from sklearn.metrics import f1_score

    right, predicted = np.asarray(targets), np.asarray(predictions)
    correct, total = int((right == predicted).sum()), len(right)
    low, high = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    f1 = f1_score(right, predicted, labels=np.unique(right), average="macro", zero_division=0)
    return Scores(total, correct, correct / total, float(low), float(high), float(f1))


def mean_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy over all the recordings of one update, however they are spread over accumulated batches.

    Args:
        outputs: of the model, with ``logits (batch, classes)``.
        labels: ``(batch,)`` class of each recording.
        num_items_in_batch: recordings of the update; those of the batch where not given.
    """
    total = F.cross_entropy(outputs["logits"].float(), labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def valid_figures(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and the rank by which the best epoch is chosen: accuracy and, among equals, the lower loss."""
    logits, targets = torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)
    correct = int((logits.argmax(dim=-1) == targets).sum())
    # Between 0 and 1, like less than a recording.
    likelihood = math.exp(-float(F.cross_entropy(logits.float(), targets)))
    return {"accuracy": correct / len(targets), "rank": correct + likelihood}


def predict_logits(model: nn.Module, dataset: FeatureDataset, batch_size: int = 32) -> NDArray[np.float32]:
    """Logits of every recording, in evaluation mode and full precision.

    Args:
        model: the classifier; its training mode is restored.
        dataset: the recordings, of which the front end hears the beginning.
        batch_size: recordings at a time.

    Returns:
        ``(recordings, classes)``, on the scale of the model's loss.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        batches = DataLoader(dataset, batch_size, collate_fn=Collator(dataset.front_end))
        logits = [batch_logits(model, batch) for batch in batches]
    finally:
        for module, training in modes.items():
            module.training = training
    return np.asarray(torch.cat(logits).numpy(), dtype=np.float32)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of the classes, ``(recordings, classes)``, of their logits."""
    return np.asarray(torch.from_numpy(logits).softmax(dim=-1).numpy(), dtype=np.float32)


def class_rows(
    name: str, split: Split, predicted: Iterable[int], found: NDArray[np.floating], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of ``predictions.csv``: the class of each recording, what it was taken for, the probability of each class.

    Args:
        name: of the split.
        split: the recordings.
        predicted: number of the class that each recording was taken for.
        found: ``(recordings, classes)`` probabilities.
        labels: the classes.
    """
    return [
        {
            "split": name,
            "recording": example.name,
            "target": target,
            "predicted": labels[number],
            **{probability_column(label): f"{value:.6f}" for label, value in zip(labels, row, strict=True)},
        }
        for example, target, number, row in zip(split.examples, split.targets, predicted, found, strict=True)
    ]


@torch.inference_mode()
def batch_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits of one batch, on the CPU.

    Args:
        model: the classifier, in evaluation mode.
        batch: its keyword arguments; ``labels`` are not looked at.

    Returns:
        ``(recordings, classes)``.
    """
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits.float().cpu()
    return logits
