"""The steps of a pre-training: from recordings to a model that transformers loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor, set_seed

from mambavox.errors import ConfigError
from mambavox.files import to_json, write_atomically
from mambavox.hubert import MambaHubertForPreTraining
from mambavox.plotting import NO_MATPLOTLIB, can_draw
from mambavox.runs.card import CardText, model_card
from mambavox.runs.folder import CARD_FILE, HISTORY_FILE, METRICS_FILE, RECORDINGS_FILE
from mambavox.runs.plots import CURVE_FILE, plots_in
from mambavox.runs.result import RunResult
from mambavox.training.engine import device_name, library_versions
from mambavox.training.pretraining.config import MFCC, PretrainConfig
from mambavox.training.pretraining.curve import plot_curve
from mambavox.training.pretraining.data import CropDataset, WaveformCrops
from mambavox.training.pretraining.distillation import DistillationModel, DistillationTrainer
from mambavox.training.pretraining.objective import PretrainTrainer, pretraining_arguments
from mambavox.training.pretraining.progress import read_history
from mambavox.training.pretraining.recordings import hold_back, load, read_examples
from mambavox.training.pretraining.teacher import Teacher
from mambavox.training.task import Task
from mambavox.units.features import Features, load_features
from mambavox.units.labels import UNIT_BYTES, UnitLabels, are_finished
from mambavox.units.targets import check_targets, make_targets

_LEAST_CACHE = 64 << 20  # bytes of targets

_LOADING = """In Python:

```python
import mambavox.hubert
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("{run}")
extractor = AutoFeatureExtractor.from_pretrained("{run}")
```

`AutoModelForCTC` and `AutoModelForAudioClassification` load it with a new head{own_head}.
Without mambavox installed: `trust_remote_code=True`."""


class PretrainTask(Task[PretrainConfig, PretrainTrainer]):
    """Pre-trains a Mamba-HuBERT to predict units behind masks or, with a teacher, the teacher's layers.

    With a teacher the model is kept without the heads that predict its layers.
    """

    config_class = PretrainConfig

    def prepare(self) -> None:
        """Read the recordings; whatever can be wrong with targets or teacher is told before anything is replaced."""
        config = self.config
        self.model_config = config.model_config()
        self.arguments = pretraining_arguments(config, self.folder.checkpoints, self.console)
        self._check_output()
        device = self.arguments.device
        self.teacher = None if config.teacher is None else Teacher(config, self.model_config, device)
        self.examples = read_examples(config)
        self.features: Features | None = None
        if not self.first:
            return
        self._read(known=self._ledger() if self.resume else {})
        if self.teacher is None and not (self.resume and are_finished(self.folder.targets)):
            self.features = load_features(config.targets, str(device))
            check_targets(
                self.recordings.examples,
                self.recordings.lengths,
                self.features,
                config.units,
                fraction=config.cluster_fraction,
                seed=config.seed,
                fit_on=self.division.train,
            )

    def _check_output(self) -> None:
        """Check that the run does not replace what it learns from.

        Raises:
            ConfigError: it would.
        """
        config = self.config
        models = {"targets": config.targets.rpartition(":")[0], "teacher": config.teacher}
        output = config.output_path.resolve()
        for name, model in models.items():
            path = Path(model or "").expanduser().resolve()
            if model and path.exists() and (output == path or output in path.parents):
                raise ConfigError(
                    f"output={config.output_path}: {name}={getattr(config, name)} lies there, which the run would "
                    "replace; choose another --output"
                )

    def _ledger(self) -> dict[str, int | str]:
        try:
            known = json.loads((self.folder.path / RECORDINGS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}  # without it recordings are only read again
        return known if isinstance(known, dict) else {}

    def _read(self, known: dict[str, int | str]) -> None:
        """The recordings, and those of them that are held back."""
        terminal = self.console is not None and self.console.is_terminal
        with Progress(console=self.console, transient=True, disable=not terminal) as bar:
            task = bar.add_task("reading recordings", total=len(self.examples))
            self.recordings = load(
                self.config,
                self.model_config,
                self.examples,
                known,
                lambda done, total: bar.update(task, completed=done),
            )
        self.division = hold_back(self.recordings.examples, self.config.valid_fraction, self.config.split_seed)
        if self.console is not None:
            left_out = f"{self.recordings.short} too short, {len(self.recordings.problems)} unreadable"
            self.console.print(
                f"{len(self.recordings.examples)} recordings, {self.recordings.hours:.2f} h ({left_out})"
            )
            train, valid = (self.recordings.select(rows).hours for rows in (self.division.train, self.division.valid))
            self.console.print(
                f"{train:.2f} h to train on, {valid:.2f} h ({len(self.division.valid)} recordings) held back, "
                f"{self.division.how}",
                markup=False,
            )

    def make_trainer(self) -> PretrainTrainer:
        """Make the targets, then what learns to predict them."""
        self._make_targets()
        config, model_config = self.config, self.model_config
        parts = self.recordings.select(self.division.train), self.recordings.select(self.division.valid)
        # Held-back recordings are heard and masked the same way in every run, so that runs can be compared.
        seeds = (config.seed, 0), (config.split_seed, 1)
        self.train: CropDataset | WaveformCrops
        self.valid: CropDataset | WaveformCrops
        if self.teacher is None:
            labels = UnitLabels.load(self.folder.targets)
            if self.recordings.shards is not None:
                labels.cache_bytes = self._bytes_of_windows(labels, len(np.unique(self.recordings.shards)))
            self.train, self.valid = (
                CropDataset(part, labels, model_config, seed) for part, seed in zip(parts, seeds, strict=True)
            )
        else:
            self.train, self.valid = (
                WaveformCrops(part, model_config, seed) for part, seed in zip(parts, seeds, strict=True)
            )
        set_seed(config.seed)
        options: dict[str, Any] = {
            "train": self.train,
            "valid": self.valid if len(self.valid) else None,
            "history": self.folder.path / HISTORY_FILE,
            "tensorboard": self.folder.tensorboard if config.tensorboard else None,
            "console": self.console,
        }
        trainer: PretrainTrainer
        model: MambaHubertForPreTraining | DistillationModel
        if self.teacher is None:
            model = MambaHubertForPreTraining(model_config)
            trainer = PretrainTrainer(model, config, self.arguments, **options)
        else:
            model = DistillationModel(model_config, list(self.teacher.layers.values()), self.teacher.dim)
            if config.teacher_front_end:
                self.teacher.give_front_end(model.mamba_hubert)
            trainer = DistillationTrainer(model, self.teacher, config, self.arguments, **options)
        self.parameters = count_parameters(model)  # before they are sharded
        if self.arguments.world_size > 1:
            torch.manual_seed(config.seed + self.arguments.process_index)  # each process its own dropout
        return trainer

    def _make_targets(self) -> None:
        """Make the units or remember the teacher, in the first process; then the others read the recordings."""
        config, folder = self.config, self.folder
        if self.first:
            write_atomically(folder.path / RECORDINGS_FILE, to_json(self.recordings.ledger))
        self.processes.wait_for_everyone()
        if not self.first:
            self._read(known=self._ledger())
        elif self.teacher is not None:
            self.teacher.remember(folder.targets)
        else:
            make_targets(
                self.recordings.examples,
                config.targets,
                config.units,
                folder.targets,
                fraction=config.cluster_fraction,
                seed=config.seed,
                device=str(self.arguments.device),
                batch_seconds=config.seconds_a_device,
                features=self.features,
                fit_on=self.division.train,
                console=self.console if self.console is not None and self.console.is_terminal else None,
            )
            self.features = None
        self.processes.wait_for_everyone()

    def _bytes_of_windows(self, labels: UnitLabels, shards: int) -> int:
        """Memory for the targets of two windows, which each process needs at a time."""
        windows = 2 * self.config.shuffle_shards * int(labels.frames.sum()) * UNIT_BYTES / shards
        return max(_LEAST_CACHE, round(windows))

    def learn(self, trainer: PretrainTrainer, checkpoint: Path | None) -> None:
        """Train; then the weights are gathered: each process may hold a part of them."""
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.weights: dict[str, Tensor] = trainer.weights()

    def result(self, trainer: PretrainTrainer) -> RunResult:
        """The figures of the last updates, and of the last evaluation."""
        config, history = self.config, trainer.state.log_history
        last = next(line for line in reversed(history) if "loss" in line)
        scores: dict[str, float] = next((line for line in reversed(history) if "eval_seconds" in line), {})
        layers = self.teacher.layers if self.teacher else {}
        valid = {key.removeprefix("eval_"): value for key, value in scores.items() if key.startswith("eval_")}
        train = {key: value for key, value in last.items() if key not in ("epoch", "step")}
        problems = self.recordings.problems
        return RunResult(
            task=config.task,
            backbone=config.preset,
            method=None,
            scores={"train": train, **({"valid": valid} if valid else {})},
            learning_curve=[],
            best_epoch=config.num_steps * config.batches_a_step / trainer.batches.count()[0],
            parameters=self.parameters,
            learning_rate=config.peak_learning_rate,
            seconds=trainer.seconds,
            recordings={"train": len(self.train), "valid": len(self.valid)},
            hours={"train": self.train.recordings.hours, "valid": self.valid.recordings.hours},
            left_out=[{"name": problem.name, "split": "", "reason": problem.reason} for problem in problems],
            notes=[f"held back {self.division.how}"],
            device=device_name(trainer.args.device),
            versions=library_versions(),
            details={
                "targets": f"{config.teacher}:{','.join(map(str, layers))}" if layers else config.targets,
                "num_clusters": None if layers else config.units,
                "steps": trainer.state.global_step,
                "short": self.recordings.short,
                "processes": trainer.args.world_size,
                "student_layers": list(layers.values()),
                "from_teacher": self.teacher.given if self.teacher else [],
            },
        )

    def write(self, path: Path, trainer: PretrainTrainer, result: RunResult) -> None:
        """Write the model, its feature extractor, the plot, the model card and, last, the figures."""
        config = self.config
        trainer.trained.save_pretrained(path, state_dict=self.weights)
        Wav2Vec2FeatureExtractor(
            sampling_rate=self.model_config.sampling_rate, do_normalize=False, return_attention_mask=True
        ).save_pretrained(path)
        if config.plots:
            self._draw(path, trainer, result)
        card = model_card(result, config, self.folder.path, self._card(result), plots_in(path))
        (path / CARD_FILE).write_text(card, encoding="utf-8")
        (path / METRICS_FILE).write_text(to_json(result.to_mapping()), encoding="utf-8")

    def _draw(self, path: Path, trainer: PretrainTrainer, result: RunResult) -> None:
        if not can_draw():
            if self.console is not None:
                self.console.print(NO_MATPLOTLIB, markup=False)
            return
        # Where the targets' model lies on this machine says nothing on another one.
        targets = Path(str(result.details["targets"])).name
        title = f"{self.config.preset} on {Path(self.config.given_data).name}, targets {targets}"
        history = read_history(self.folder.path / HISTORY_FILE)
        plot_curve(history, path / CURVE_FILE, title, trainer.figures.panels)

    def _card(self, result: RunResult) -> CardText:
        distilled = result.details["num_clusters"] is None
        name, parameters = Path(self.config.given_data).name, result.parameters
        device = result.device
        if result.details["processes"] > 1:
            device = f"{result.details['processes']} x {device}"
        return CardText(
            title=f"{result.backbone}, {'distilled' if distilled else 'pre-trained'} on {name}",
            summary="A Mamba-HuBERT: a self-supervised encoder of speech, 16 kHz mono, one frame in 20 ms.",
            loading=_LOADING.format(
                run=self.folder.path.as_posix(),
                own_head="" if distilled else ", `AutoModelForPreTraining` with the one it was trained with",
            ),
            training=(
                f"{parameters['encoder']:,} parameters, {parameters['whole']:,} with what predicts the targets: "
                f"{_targets(result)}. {result.details['steps']:,} updates, {result.best_epoch:.1f} passes over "
                f"{result.hours['train']:.2f} h of speech; peak learning rate {result.learning_rate:g}, "
                f"{result.seconds / 3600:.2f} h on {device}."
            ),
            tags=("speech", "self-supervised"),
        )


def count_parameters(model: Any) -> dict[str, int]:
    """Parameters of the encoder, and of the whole model with what predicts the targets."""
    return {
        "encoder": sum(parameter.numel() for parameter in model.mamba_hubert.parameters()),
        "whole": sum(parameter.numel() for parameter in model.parameters()),
    }


def _targets(result: RunResult) -> str:
    """What was predicted, in words."""
    details = result.details
    model, _, layers = details["targets"].rpartition(":")
    if details["num_clusters"] is not None:
        source = "MFCC" if details["targets"] == MFCC else f"layer {layers} of {model}"
        return f"{details['num_clusters']} units of {source}"
    pairs = ", ".join(
        f"{theirs} (from the student's {ours})"
        for theirs, ours in zip(layers.split(","), details["student_layers"], strict=True)
    )
    given = details["from_teacher"]
    return f"layers {pairs} of {model}" + (f"; begun with {len(given)} tensors of its front end" if given else "")
