"""What a run gave: one type for all tasks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mambavox.errors import RunError
from mambavox.runs.folder import METRICS_FILE, RunFolder, not_finished

OPTIMISTIC = "optimistic: the epoch was chosen on this split"
"""What is said beside a score of the split by which the epoch was chosen."""


@dataclass(frozen=True)
class RunResult:
    """What a run gave; ``metrics.json`` holds the same.

    Attributes:
        task: name of the task.
        backbone: what was adapted, or the preset of what was pre-trained.
        method: how it was adapted; ``None`` in pre-training.
        scores: by split, figures as the task's ``objective.py`` defines them: ``accuracy`` and others, or ``wer`` and
            ``cer``, with intervals, or those of a pre-training's updates.
        learning_curve: for each epoch its number, the training loss, and loss and scores on the valid split.
        best_epoch: the epoch that was kept; in pre-training the number of passes.
        parameters: trained ones.
        learning_rate: peak.
        seconds: time of the training, over resumptions, evaluation after each epoch included.
        recordings: number in each split.
        hours: of speech or sound in each split.
        left_out: name, split and reason of the recordings that could not be used.
        notes: how the splits came about, and what else a reader must know.
        device: where it was trained.
        versions: of the libraries.
        selects_on_test: the best epoch was chosen on the test split, so that the score there is optimistic; the
            figures named ``valid`` in ``learning_curve`` are of the test split.
        details: what only this task has, such as the length at which recordings were cut.
    """

    task: str
    backbone: str
    method: str | None
    scores: Mapping[str, Mapping[str, Any]]
    learning_curve: list[dict[str, float]]
    best_epoch: float
    parameters: Mapping[str, Any]
    learning_rate: float
    seconds: float
    recordings: Mapping[str, int]
    hours: Mapping[str, float]
    left_out: list[dict[str, str]]
    notes: list[str]
    device: str
    versions: Mapping[str, str]
    selects_on_test: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def describe_split(self, split: str) -> str:
        """A split's name, with what must be known wherever its score is shown."""
        return f"{split} ({OPTIMISTIC})" if self.selects_on_test and split == "test" else split

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}

    @classmethod
    def load(cls, run: str | Path) -> "RunResult":
        """Read the result of a finished run.

        Args:
            run: its folder.

        Raises:
            RunError: it holds no finished run, or ``metrics.json`` is damaged.
        """
        path = Path(run) / METRICS_FILE
        if not RunFolder(run).is_finished:
            raise not_finished(run)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{path}: cannot be read ({error}); expected what a run of mambavox writes") from error


def describe_scores(figures: Mapping[str, Any]) -> str:
    """The scores of a split in words, such as ``WER 12.41 % [9.80, 15.22], CER 4.10 % [3.12, 5.20]``.

    Args:
        figures: of one split, as :attr:`RunResult.scores` has them.
    """
    if "accuracy" in figures:
        return f"accuracy {describe_accuracy(figures)}, macro F1 {figures['macro_f1']:.3f}"
    if "wer" in figures:
        return ", ".join(f"{rate.upper()} {describe_rate(figures[rate])}" for rate in ("wer", "cer"))
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, (int, float)))


def describe_accuracy(figures: Mapping[str, Any]) -> str:
    """An accuracy with its interval, in %."""
    low, high = 100 * figures["accuracy_low"], 100 * figures["accuracy_high"]
    return f"{100 * figures['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"


def describe_rate(rate: Mapping[str, float]) -> str:
    """An error rate with its interval, in %."""
    return "{:.2f} % [{:.2f}, {:.2f}]".format(*(100 * rate[key] for key in ("rate", "low", "high")))
