"""Figures of a saved run on data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mambavox.data import AudioProblem, Example
from mambavox.errors import DataError
from mambavox.evaluation.classifier import AudioClassifier
from mambavox.training.adapt import load_examples, load_splits
from mambavox.training.config import AdaptConfig
from mambavox.training.features import class_indices
from mambavox.training.result import load_run_config
from mambavox.training.scores import Scores, score

Part = Literal["train", "valid", "test", "all"]


@dataclass(frozen=True)
class ClassScores:
    """Figures of one class.

    Attributes:
        label: the class.
        clips: its recordings.
        correct: how many of them were recognised.
        mistaken_for: the class that it is most often taken for, if any.
    """

    label: str
    clips: int
    correct: int
    mistaken_for: str | None

    @property
    def recall(self) -> float:
        """Share of its recordings that were recognised, 0 to 1."""
        return self.correct / self.clips


@dataclass(frozen=True)
class Evaluation:
    """Figures of a classifier on some data.

    Attributes:
        data: the data.
        part: which part of it.
        scores: figures over all classes.
        labels: the classes, in the order of the confusion counts.
        confusion: ``(classes, classes)`` recordings of the row's class that were taken for the column's.
        skipped: recordings that could not be used.
        selects_on_test: the run's best epoch was chosen on this part, which makes the figures optimistic.
    """

    data: str
    part: str
    scores: Scores
    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    skipped: list[AudioProblem]
    selects_on_test: bool = False

    def classes(self) -> list[ClassScores]:
        """Figures of each class that occurs, the worst first."""
        rows = []
        for index, counts in enumerate(self.confusion):
            if not counts.sum():
                continue
            wrong = counts.copy()
            wrong[index] = 0
            mistaken_for = self.labels[int(wrong.argmax())] if wrong.any() else None
            rows.append(ClassScores(self.labels[index], int(counts.sum()), int(counts[index]), mistaken_for))
        return sorted(rows, key=lambda row: row.recall)

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "data": self.data,
            "part": self.part,
            **self.scores.to_mapping(),
            "labels": list(self.labels),
            "confusion": self.confusion.tolist(),
            "selects_on_test": self.selects_on_test,
            "skipped": [{"name": problem.name, "reason": problem.reason} for problem in self.skipped],
        }


def evaluate_run(
    run: str | Path,
    *,
    data: str | None = None,
    part: Part | None = None,
    label_column: str | None = None,
    audio_column: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    batch_size: int | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Score a finished run's classifier.

    Args:
        run: the run folder.
        data: recordings with labels; default the run's own, divided as in the run.
        part: which part; default the run's test part (valid where it has none), or all of other data.
        label_column: column of the class; default as in the run.
        audio_column: column of the recordings; default as in the run.
        on_error: what to do about recordings that cannot be used.
        batch_size: recordings at a time; default as in the run.
        device: where to run; default a GPU if there is one.
        console: where progress goes.

    Raises:
        RunError: the folder holds no finished run.
        DataError: the data have no such part, no labels, or classes that the classifier does not know.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
    """
    classifier = AudioClassifier.from_pretrained(run, device=device)
    trained = load_run_config(run)
    config = trained.replace(
        data=data or trained.data,
        label_column=label_column or trained.label_column,
        audio_column=audio_column or trained.audio_column,
        on_error=on_error,
    )
    own = config.data == trained.data
    examples, chosen, skipped, selects_on_test = _examples(config, part or (None if own else "all"), console)
    targets = class_indices(examples, classifier.labels)
    predictions = classifier.logits(examples, batch_size or config.batch_size).argmax(axis=1)
    confusion = np.zeros((len(classifier.labels), len(classifier.labels)), dtype=np.int64)
    np.add.at(confusion, (targets, predictions), 1)
    return Evaluation(
        data=config.data or "",
        part=chosen,
        scores=score(targets, predictions),
        labels=classifier.labels,
        confusion=confusion,
        skipped=skipped,
        selects_on_test=selects_on_test,
    )


def _examples(
    config: AdaptConfig, part: Part | None, console: Console | None
) -> tuple[list[Example], str, list[AudioProblem], bool]:
    """Recordings of one part, the part's name, those left out, and whether the run's epoch was chosen on that part."""
    if part == "all":
        usable, skipped = load_examples(config, console)
        return usable, "all", skipped, False
    splits, skipped = load_splits(config, console)
    parts = {"train": splits.train, "valid": splits.valid, "test": splits.test}
    chosen = part or ("test" if splits.test else "valid")
    if not parts[chosen]:
        there = ", ".join(name for name, examples in parts.items() if examples)
        raise DataError(f"{config.data}: has no {chosen} part; it has {there}: choose one of them, or all, with --part")
    return parts[chosen], chosen, skipped, splits.selects_on_test and chosen == "test"
