"""What a run gave."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mambavox.adapters import ParameterCounts
from mambavox.errors import RunError
from mambavox.training.config import AdaptConfig
from mambavox.training.run_config import RUN_FILE
from mambavox.training.run_folder import METRICS_FILE
from mambavox.training.scores import Scores

OPTIMISTIC = "optimistic: the epoch was chosen on this part"
"""What is said beside a score of the part that chose."""


@dataclass(frozen=True)
class AdaptResult:
    """What a run gave; ``metrics.json`` holds the same.

    Attributes:
        method: how the backbone was adapted.
        backbone: what was adapted.
        scores: figures on ``valid`` and ``test``, as far as there are such parts.
        learning_curve: for each epoch its number, training loss, and loss and accuracy on the valid part.
        best_epoch: the epoch that was kept.
        parameters: trainable ones, as ``trainable_parameters`` counts them.
        seconds: time of the training, evaluation after each epoch included.
        learning_rate: peak.
        max_seconds: where recordings were cut.
        clips: recordings of each part.
        cut: how many of them were longer than ``max_seconds``.
        skipped: name and reason of the recordings that could not be used.
        notes: how the parts came about.
        device: where it was trained.
        versions: of the libraries.
        selects_on_test: the best epoch was chosen on the test part, so the score there is optimistic; the figures
            named ``valid`` in ``learning_curve`` are of the test part.
    """

    method: str
    backbone: str
    scores: Mapping[str, Scores]
    learning_curve: list[dict[str, float]]
    best_epoch: int
    parameters: ParameterCounts
    seconds: float
    learning_rate: float
    max_seconds: float
    clips: Mapping[str, int]
    cut: int
    skipped: list[dict[str, str]]
    notes: list[str]
    device: str
    versions: Mapping[str, str]
    selects_on_test: bool = False

    def describe_part(self, part: str) -> str:
        """A part's name, with what must be known wherever its score is shown."""
        return f"{part} ({OPTIMISTIC})" if self.selects_on_test and part == "test" else part

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def load(cls, run: str | Path) -> "AdaptResult":
        """Read the result of a finished run.

        Args:
            run: its folder.

        Raises:
            RunError: it holds no finished run.
        """
        path = Path(run) / METRICS_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            scores = {part: Scores(**figures) for part, figures in content.pop("scores").items()}
            return cls(scores=scores, **content)
        except FileNotFoundError as error:
            raise not_finished(Path(run)) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: cannot be read ({error}); expected what `mambavox adapt` writes") from error


def load_run_config(run: str | Path) -> AdaptConfig:
    """Read the configuration of a run.

    Args:
        run: its folder.

    Raises:
        RunError: the folder holds no run.
    """
    if not (Path(run) / RUN_FILE).is_file():
        raise RunError(f"{run}: holds no run ({RUN_FILE}); expected a folder that `mambavox adapt` wrote")
    return AdaptConfig.load(Path(run) / RUN_FILE)


def not_finished(run: Path) -> RunError:
    """The error about a folder without a finished run."""
    if (run / RUN_FILE).is_file():
        return RunError(f"{run}: the run is not finished; end it with `mambavox adapt --output {run} --resume`")
    return RunError(f"{run}: holds no run; expected a folder that `mambavox adapt` wrote")
