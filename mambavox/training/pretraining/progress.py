"""What a pre-training tells while it runs: a file of figures, a bar on a terminal, lines elsewhere."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TimeElapsedColumn
from transformers import TrainerCallback, TrainerState

from mambavox.files import write_atomically
from mambavox.training.callbacks import TrainingBar
from mambavox.training.pretraining.figures import Figures


class History(TrainerCallback):
    """Writes figures into a file, one JSON object a line, as they come.

    Args:
        path: the file. What lies in it beyond the step from which a run goes on is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Keep what was before the checkpoint."""
        lines = [line for line in read_history(self.path) if line["step"] <= state.global_step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Add a line."""
        line = {"step": state.global_step, **{key: _rounded(value) for key, value in kwargs["logs"].items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of a file of figures; a last one that a kill left incomplete is passed over."""
    lines = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except (ValueError, RecursionError):
                break
    return lines


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


class Progress(TrainingBar):
    """A bar on a terminal, and lines of figures.

    Args:
        console: where they go.
        figures: say what is told.
    """

    def __init__(self, console: Console, figures: Figures) -> None:
        super().__init__(console, TimeElapsedColumn())
        self.figures = figures

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Tell figures."""
        logs = kwargs["logs"]
        if "loss" in logs:
            line = (
                f"loss {logs['loss']:.3f}  {self.figures.training_line(logs)}  norm {logs['grad_norm']:.2f}  "
                f"rate {logs['learning_rate']:.2e}  {logs['hours_an_hour']:.1f} h/h"
            )
            self.progress.update(self.task, description=line)
            if not self.console.is_terminal:
                self.console.print(f"{state.global_step}/{state.max_steps}  {line}", markup=False)
        elif "eval_seconds" in logs:
            valid = {key.removeprefix("eval_"): value for key, value in logs.items()}
            self.console.print(
                f"{state.global_step}/{state.max_steps}  valid: {self.figures.valid_line(valid)}", markup=False
            )
