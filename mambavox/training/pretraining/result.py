"""What a pre-training gave."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mambavox.errors import RunError
from mambavox.training.run_folder import METRICS_FILE


@dataclass(frozen=True)
class PretrainResult:
    """What a pre-training gave; ``metrics.json`` holds the same.

    Attributes:
        preset: kind and size of the model.
        targets: what it predicts: ``mfcc``, ``MODEL:LAYER``, or a teacher and its layers, ``MODEL:4,8,12``.
        num_clusters: number of units; ``None`` with a teacher.
        parameters: of the encoder, and of the whole model with the head for units, or the heads for layers.
        train: figures of the last updates: ``masked_accuracy`` and the others of ``metrics.jsonl``.
        valid: the same on the held-back recordings; empty where none are held back.
        steps: updates.
        epochs: passes over the training part.
        hours: of the training and the valid part.
        clips: their recordings.
        seconds: time of the training, over resumptions.
        short: recordings left out because they are too short.
        skipped: name and reason of the recordings that could not be read.
        device: where it was trained.
        processes: on how many devices.
        versions: of the libraries.
        student_layers: those that predict the teacher's, in their order; empty without a teacher.
        from_teacher: tensors with which the student began as the teacher's.
    """

    preset: str
    targets: str
    num_clusters: int | None
    parameters: Mapping[str, int]
    train: Mapping[str, float]
    valid: Mapping[str, float]
    steps: int
    epochs: float
    hours: Mapping[str, float]
    clips: Mapping[str, int]
    seconds: float
    short: int
    skipped: list[dict[str, str]]
    device: str
    processes: int
    versions: Mapping[str, str]
    student_layers: list[int] = field(default_factory=list)
    from_teacher: list[str] = field(default_factory=list)

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def load(cls, run: str | Path) -> "PretrainResult":
        """Read the result of a finished run.

        Args:
            run: its folder.

        Raises:
            RunError: it holds no finished pre-training.
        """
        path = Path(run) / METRICS_FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{path}: cannot be read ({error}); expected what `mambavox pretrain` writes") from error
