"""What a task is: the steps in which the kinds of runs differ. ``run.py`` takes them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from accelerate import PartialState
from peft import PeftModel
from rich.console import Console
from torch import nn
from transformers import set_seed

from mambavox.adapters import ParameterCounts, trainable_parameters
from mambavox.files import to_json
from mambavox.hub import quiet_transformers
from mambavox.runs import plots
from mambavox.runs.card import CardText, model_card, trained_parameters
from mambavox.runs.config import AdaptConfig, RunConfig
from mambavox.runs.folder import CARD_FILE, METRICS_FILE, RunFolder
from mambavox.runs.predictions import PREDICTIONS_FILE, of_split, write_predictions
from mambavox.runs.result import RunResult
from mambavox.training.engine import (
    EpochTrainer,
    RunTrainer,
    device_name,
    learning_curve,
    library_versions,
    save_trained,
)
from mambavox.training.splits import RunData

ConfigT = TypeVar("ConfigT", bound=RunConfig)
AdaptConfigT = TypeVar("AdaptConfigT", bound=AdaptConfig)
TrainerT = TypeVar("TrainerT", bound=RunTrainer)
EpochTrainerT = TypeVar("EpochTrainerT", bound=EpochTrainer)

Scored: TypeAlias = dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]
"""For each split its figures, and its rows of ``predictions.csv``."""


class Task(ABC, Generic[ConfigT, TrainerT]):
    """One run of a task, step by step.

    Args:
        config: what to do.
        folder: of the run.
        processes: this one and those beside it.
        console: where progress goes; ``None`` is silent, as in all processes but the first.
        resume: whether the folder's unfinished run is continued.

    Attributes:
        config_class: class of the task's configuration.
    """

    config_class: ClassVar[type[RunConfig]]

    def __init__(
        self, config: ConfigT, folder: RunFolder, processes: PartialState, console: Console | None, *, resume: bool
    ) -> None:
        self.config = config
        self.folder = folder
        self.processes = processes
        self.console = console
        self.resume = resume

    @property
    def first(self) -> bool:
        """Whether this process is the one of several that writes and prints."""
        return bool(self.processes.is_main_process)

    @abstractmethod
    def prepare(self) -> None:
        """Read the recordings and make the model; whatever is wrong is told here, before an earlier run is removed."""

    @abstractmethod
    def make_trainer(self) -> TrainerT:
        """Make what trains; the folder is this run's now."""

    @abstractmethod
    def learn(self, trainer: TrainerT, checkpoint: Path | None) -> None:
        """Train, from a checkpoint on if there is one."""

    @abstractmethod
    def result(self, trainer: TrainerT) -> RunResult:
        """Score what was trained; called in all processes."""

    @abstractmethod
    def write(self, path: Path, trainer: TrainerT, result: RunResult) -> None:
        """Write the files of the finished run, whole, into a folder."""


class AdaptTask(Task[AdaptConfigT, EpochTrainerT]):
    """The steps that all tasks share which adapt a pre-trained backbone.

    Attributes:
        curve: figures of the valid split that belong to the learning curve.
        data: the recordings, once :meth:`prepare` has read them.
        model: the backbone with what is trained.
    """

    curve: ClassVar[Sequence[str]]
    data: RunData
    model: nn.Module

    def prepare(self) -> None:
        """Read the recordings, then make the model; what is drawn for it depends on the seed alone."""
        self.data = self.read()
        set_seed(self.config.seed)
        with quiet_transformers():
            self.model = self.make_model()
        self.parameters: ParameterCounts = trainable_parameters(self.model)

    @abstractmethod
    def read(self) -> RunData:
        """The recordings by split."""

    @abstractmethod
    def make_model(self) -> nn.Module:
        """The backbone with what the method trains, and the data sets that fit it."""

    @abstractmethod
    def scores(self, trainer: EpochTrainerT) -> Scored:
        """For each split that was held back its figures, and the rows of ``predictions.csv``."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """What only this task's results have."""

    @abstractmethod
    def card(self, result: RunResult) -> CardText:
        """What the model card says of the run."""

    @abstractmethod
    def save_inputs(self, path: Path) -> None:
        """Write what makes the model's inputs and reads its outputs."""

    def learn(self, trainer: EpochTrainerT, checkpoint: Path | None) -> None:
        """Train; then the best epoch is in the model."""
        trainer.learn(checkpoint)

    def result(self, trainer: EpochTrainerT) -> RunResult:
        """Score the splits that were held back."""
        scored = self.scores(trainer)
        self.rows = [row for _, rows in scored.values() for row in rows]
        return RunResult(
            task=self.config.task,
            backbone=self.config.given_backbone,
            method=self.config.method,
            scores={name: figures for name, (figures, _) in scored.items()},
            learning_curve=learning_curve(trainer.state.log_history, self.curve),
            best_epoch=trainer.best_epoch,
            parameters=dict(self.parameters),
            learning_rate=self.config.peak_learning_rate,
            seconds=trainer.seconds,
            recordings={name: len(split) for name, split in self.data.splits.items()},
            hours={name: round(split.hours, 4) for name, split in self.data.splits.items()},
            left_out=self.data.left_out,
            notes=self.data.notes,
            device=device_name(trainer.args.device),
            versions=library_versions(),
            selects_on_test=self.data.selects_on_test,
            details=self.details(),
        )

    def write(self, path: Path, trainer: EpochTrainerT, result: RunResult) -> None:
        """Write what was trained, the predictions, the model card and, last, the figures."""
        if isinstance(self.model, PeftModel):
            for adapter in self.model.peft_config.values():
                # Where the backbone lies on this machine says nothing on another one.
                adapter.base_model_name_or_path = self.config.backbone
        save_trained(self.model, path)
        self.save_inputs(path)
        write_predictions(path / PREDICTIONS_FILE, self.rows)
        if self.config.plots:
            self._draw(path, result)
        card = model_card(result, self.config, self.folder.path, self.card(result), plots.plots_in(path))
        (path / CARD_FILE).write_text(card, encoding="utf-8")
        (path / METRICS_FILE).write_text(to_json(result.to_mapping()), encoding="utf-8")

    def _draw(self, path: Path, result: RunResult) -> None:
        title = f"{Path(result.backbone).name}, {result.method}, {Path(self.config.given_data).name}"
        splits = {result.describe_split(name): of_split(self.rows, name) for name in result.scores}
        labels = result.details.get("labels")
        problem = plots.draw_run(path, result.learning_curve, result.best_epoch, splits, labels, title)
        if problem and self.console is not None:
            self.console.print(problem, markup=False)

    def training_text(self, result: RunResult) -> str:
        """How it was trained, for the model card."""
        chooser = "test" if result.selects_on_test else "valid"
        choice = f", the best on the {chooser} split" if chooser in result.scores else ""
        return (
            f"{trained_parameters(result.parameters)} Learning rate {result.learning_rate:g}, {result.seconds:.0f} s "
            f"on {result.device}; epoch {result.best_epoch} of {len(result.learning_curve)} was kept{choice}."
        )
