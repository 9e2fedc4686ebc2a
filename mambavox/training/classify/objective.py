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

_LESS_THAN_F1 = 1e-9  # than two different values of it lie apart


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
        classes: for each class that occurs its name (``label``), how many ``recordings`` it has, and ``precision``,
            ``recall`` and ``f1``, 0 to 1.
    """

    recordings: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    classes: list[dict[str, Any]]

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def score(
    targets: Sequence[Any] | NDArray[Any], predictions: Sequence[Any] | NDArray[Any], labels: Sequence[str] = ()
) -> Scores:
    """Score predicted classes.

    Args:
        targets: right class of each recording, at least one.
        predictions: predicted class of each.
        labels: names of the classes, where those are numbers.

    Source:
        Wilson 1927, the interval that stays inside 0 to 1 and is right for small samples.
    """
    # Here, because both take seconds to import, which predicting need not wait for.
    from scipy.stats import binomtest
    from sklearn.metrics import precision_recall_fscore_support

    right, predicted = np.asarray(targets), np.asarray(predictions)
    correct, total = int((right == predicted).sum()), len(right)
    low, high = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    occurring = np.unique(right)
    figures = precision_recall_fscore_support(right, predicted, labels=occurring, zero_division=0)
    classes = [
        {
            "label": labels[name] if labels else str(name),
            "recordings": int(count),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
        }
        for name, precision, recall, f1, count in zip(occurring.tolist(), *figures, strict=True)
    ]
    return Scores(total, correct, correct / total, float(low), float(high), float(figures[2].mean()), classes)


def mean_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy over all the recordings of one update, however they are spread over accumulated batches.

    Args:
        outputs: of the model, with ``logits (batch, classes)``.
        labels: ``(batch,)`` class of each recording.
        num_items_in_batch: recordings of the update; those of the batch where not given.
    """
    total = F.cross_entropy(outputs["logits"].float(), labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def weighted_cross_entropy(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None, *, weights: Sequence[float]
) -> Tensor:
    """:func:`mean_cross_entropy` with a weight for each class in training, and without in evaluation.

    Args:
        outputs: of the model, with ``logits (batch, classes)``.
        labels: ``(batch,)`` class of each recording.
        num_items_in_batch: see :func:`mean_cross_entropy`.
        weights: of the classes.
    """
    if not torch.is_grad_enabled():
        return mean_cross_entropy(outputs, labels, num_items_in_batch)
    logits = outputs["logits"].float()
    each = F.cross_entropy(logits, labels, reduction="none")
    total = (each * logits.new_tensor(weights)[labels]).sum()
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def class_weights(targets: Sequence[int]) -> list[float]:
    """A weight for each class under which all of them count the same, and a recording 1 on average.

    Args:
        targets: class of each training recording; every class occurs.
    """
    counts = np.bincount(targets)
    return (len(targets) / (len(counts) * counts)).tolist()


def valid_figures(prediction: EvalPrediction, *, metric: str = "accuracy") -> dict[str, float]:
    """Accuracy, macro F1, and the rank by which the best epoch is chosen: a figure and, among equals, the lower loss.

    Args:
        prediction: logits and classes.
        metric: the figure: ``accuracy``, ``macro_f1`` or ``loss``.
    """
    from sklearn.metrics import f1_score  # as in score

    logits, targets = torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)
    predicted = logits.argmax(dim=-1)
    correct = int((predicted == targets).sum())
    f1 = float(f1_score(targets, predicted, labels=targets.unique(), average="macro", zero_division=0))
    loss = float(F.cross_entropy(logits.float(), targets))
    likelihood = math.exp(-loss)  # between 0 and 1: like less than a recording
    rank = {"accuracy": correct + likelihood, "macro_f1": f1 + _LESS_THAN_F1 * likelihood, "loss": -loss}
    return {"accuracy": correct / len(targets), "macro_f1": f1, "rank": rank[metric]}


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
