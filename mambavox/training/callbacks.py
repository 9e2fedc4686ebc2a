"""What looks at every training as it goes: the clock, divergence, gradients, progress."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from peft import PeftModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from mambavox.errors import DivergedError, RunError

_WORSE = 1.05  # times the loss before training: no chance of the first batches
_FIRST_BATCHES = 5  # whose mean loss is that of the model before training


class TrainingClock(TrainerCallback, ExportableState):
    """Counts the seconds of training over resumptions."""

    def __init__(self) -> None:
        self.before = 0.0
        self.start: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + (0.0 if self.start is None else time.perf_counter() - self.start)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        self.before, self.start = self.seconds, None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"before": self.seconds}}


class Divergence(TrainerCallback, ExportableState):
    """Ends a run whose loss is no number any more, and warns of one that is worse than before it was trained.

    Args:
        console: told of the latter, once.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self.first: list[float] = []
        self.warned = False

    def see(self, loss: Tensor) -> None:
        """Remember the loss of the first batches, which is that of the model before training."""
        if len(self.first) < _FIRST_BATCHES:
            self.first.append(float(loss.detach()))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the mean loss of an epoch."""
        loss = kwargs["logs"].get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise DivergedError(
                f"the training loss is {loss} in epoch {state.epoch:g}: the run has diverged. "
                f"Lower the learning rate (it is {args.learning_rate:g}) with --learning-rate"
            )
        before = sum(self.first) / max(len(self.first), 1)
        rising = state.global_step <= args.get_warmup_steps(state.max_steps)
        if self.console is not None and not self.warned and not rising and self.first and loss > _WORSE * before:
            self.warned = True
            self.console.print(
                f"the training loss is {loss:.3f} in epoch {state.epoch:g} and was {before:.3f} before training: the "
                f"learning rate, {args.learning_rate:g}, seems too high; lower it with --learning-rate",
                style="yellow",
                markup=False,
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"first": self.first, "warned": self.warned}}


class GradientCheck(TrainerCallback):
    """Makes sure, in the first update, that every tensor that an adapter trains has a gradient.

    Args:
        model: checked where it is a ``PeftModel``; in full fine-tuning layers may be dropped at random.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model if isinstance(model, PeftModel) else None

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Look at the gradients."""
        if self.model is None:
            return
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        without = [name for name, parameter in trained if parameter.grad is None]
        self.model = None
        if without:
            raise RunError(
                f"{len(without)} of {len(trained)} trained tensors have no gradient, such as {without[0]}: they would "
                "never be trained. Re-entrant activation checkpointing on a frozen model does this (leave it to "
                "--gradient-checkpointing), and layers that the model's forward never reaches"
            )


class TrainingBar(TrainerCallback):
    """A bar on a terminal, one step for each update.

    Args:
        console: where it goes.
        columns: further columns of ``rich.progress``, before the time that remains.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move it."""
        self.progress.update(self.task, completed=state.global_step)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        self.progress.stop()


class EpochProgress(TrainingBar):
    """A line for each epoch and, on a terminal, a bar.

    Args:
        console: where they go.
        epochs: number of them.
        valid_line: the figures of the valid split in words.
    """

    def __init__(self, console: Console, epochs: int, valid_line: Callable[[Mapping[str, float]], str]) -> None:
        super().__init__(console)
        self.epochs = epochs
        self.valid_line = valid_line
        self.loss = math.nan

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Tell the loss, where no evaluation follows."""
        logs = kwargs["logs"]
        if "loss" in logs:
            self.loss = logs["loss"]
            if args.eval_strategy == "no":
                self._tell(state, "")

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Tell the loss and the figures of the valid split."""
        self._tell(state, f"  valid {self.valid_line(kwargs['metrics'])}")

    def _tell(self, state: TrainerState, valid: str) -> None:
        line = f"epoch {round(state.epoch or 0)}/{self.epochs}  loss {self.loss:.4f}{valid}"
        self.progress.update(self.task, description=f"epoch {round(state.epoch or 0)}")
        self.console.print(line, markup=False)
