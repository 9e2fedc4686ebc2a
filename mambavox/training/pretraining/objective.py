"""What a pre-training learns: batches by seconds, figures, evaluation, divergence."""

import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainingArguments

from mambavox.data.batching import BatchesBySeconds, Crop, ShardedBatches
from mambavox.data.shards.ahead import ReadAhead
from mambavox.errors import ConfigError
from mambavox.hubert import MambaHubertPreTrainedModel
from mambavox.training.engine import RunTrainer, training_arguments
from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.pretraining.data import CropDataset, WaveformCrops, collate
from mambavox.training.pretraining.divergence import DivergenceGuard
from mambavox.training.pretraining.figures import Figures, UnitFigures
from mambavox.training.pretraining.progress import History, Progress


def pretraining_arguments(
    config: PretrainConfig, checkpoints: Path, console: Console | None = None
) -> TrainingArguments:
    """What ``Trainer`` is told. Under torchrun this joins the other processes.

    Args:
        config: the run.
        checkpoints: folder of the checkpoints.
        console: told of GPUs that are not used.

    Raises:
        ConfigError: the device is not there, the batches cannot be divided among the processes, or the weights not.
    """
    _check_sharding(config)
    arguments = training_arguments(
        config,
        checkpoints,
        console,
        bf16_on_cpu=True,
        max_steps=config.num_steps,
        lr_scheduler_type="linear",
        logging_strategy="steps",
        logging_steps=config.log_every,
        save_strategy="steps",
        save_steps=config.steps_between_saves,
        # LayerDrop leaves layers out, of each process others.
        ddp_find_unused_parameters=bool(config.model_config().layerdrop),
    )
    if config.batches_a_step % arguments.world_size:
        raise ConfigError(
            f"{config.seconds_a_step:g} s an update are {config.batches_a_step} batches of {config.seconds_a_device:g} "
            f"s, which {arguments.world_size} processes cannot divide evenly; expected a multiple of "
            f"{arguments.world_size}: lower --device-batch-seconds"
        )
    arguments.gradient_accumulation_steps = config.batches_a_step // arguments.world_size
    return arguments


def _check_sharding(config: PretrainConfig) -> None:
    """Check that processes which hold a part of the weights each, by ``accelerate launch --use_fsdp``, stay in step.

    Raises:
        ConfigError: they would not.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    version, layerdrop = os.environ.get("FSDP_VERSION", "1"), config.model_config().layerdrop
    if version != "2":
        raise ConfigError(f"FSDP of version {version}; expected 2: accelerate launch --use_fsdp --fsdp_version 2")
    if layerdrop:
        raise ConfigError(
            f"layerdrop={layerdrop:g}: under FSDP all processes must run the same layers, and each leaves out its own; "
            "expected --layerdrop 0, or no FSDP"
        )


class PretrainTrainer(RunTrainer):
    """``Trainer`` whose order of data depends on the seed alone, on any number of processes.

    To ``Trainer`` the whole run is one epoch; a resumed one skips the batches that were heard. What is predicted is a
    matter of the model, of what its crops hold, and of ``collate`` and ``new_figures`` here: units behind masks.

    Args:
        model: to train, which has a Mamba-HuBERT as its base.
        config: the run.
        arguments: of :func:`pretraining_arguments`.
        train: recordings to train on.
        valid: recordings to evaluate on; ``None``: no evaluation.
        history: file of the figures.
        tensorboard: folder of TensorBoard logs, or ``None``.
        console: where progress goes, or ``None``.
    """

    control: TrainerControl
    collate = staticmethod(collate)

    def __init__(
        self,
        model: MambaHubertPreTrainedModel,
        config: PretrainConfig,
        arguments: TrainingArguments,
        *,
        train: CropDataset | WaveformCrops,
        valid: CropDataset | WaveformCrops | None,
        history: Path,
        tensorboard: Path | None,
        console: Console | None,
    ) -> None:
        super().__init__(model, arguments, tensorboard=tensorboard, data_collator=self.collate, train_dataset=train)
        self.config, self.valid = config, valid
        self.model_config = model.config
        self.batches = BatchesBySeconds(
            train.recordings.lengths,
            batch_samples=round(config.seconds_a_device * model.config.sampling_rate),
            max_samples=round(config.crop_seconds * model.config.sampling_rate),
            seed=config.seed,
            shards=train.recordings.shards,
            shuffle_shards=config.shuffle_shards,
        )
        self.figures = self.new_figures()
        self._evaluated = 0
        self.guard = DivergenceGuard(Path(arguments.output_dir), config.peak_learning_rate)
        if self.is_world_process_zero():
            self.add_callback(History(history))
            if console is not None:
                self.add_callback(Progress(console, self.figures))

    def new_figures(self) -> Figures:
        """Figures of no batch yet."""
        return UnitFigures(self.model_config.num_clusters, self.args.device, self.model_config.sampling_rate)

    @property
    def trained(self) -> MambaHubertPreTrainedModel:
        """What is kept of the run: the model with its head."""
        return self.accelerator.unwrap_model(self.model)

    def weights(self) -> dict[str, Tensor]:
        """The tensors of what is kept, whole, in the first process; to be called in all."""
        weights: dict[str, Tensor] = self.accelerator.get_state_dict(self.model)
        return weights

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process, for the whole run."""
        sampler = ShardedBatches(
            self.batches,
            self.config.num_steps * self.config.batches_a_step,
            self.args.process_index,
            self.args.world_size,
            ahead=self._read_ahead(),
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.config.num_workers,
            pin_memory=self.args.device.type == "cuda",
            generator=torch.Generator(),  # a loader draws a seed for its workers, which is none of the model's business
        )

    def _read_ahead(self) -> ReadAhead | None:
        """What reads shards before they are needed: one process of a machine does it for all."""
        examples = self.train_dataset.recordings.examples
        return ReadAhead(examples.tars) if examples.tars and self.args.local_process_index == 0 else None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The loss of one batch, whose figures are counted."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.figures.add(outputs, inputs["labels"], inputs["input_values"].numel())
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Figures on the held-back recordings, which are masked the same way each time."""
        paused = self.figures.pause()
        assert self.valid is not None
        self.model.eval()
        figures = self.new_figures()
        batches = self._valid_batches()
        own = batches[self.args.process_index :: self.args.world_size]
        # All processes run as many: where each holds a part of the weights, none can run alone.
        spare = -(-len(batches) // self.args.world_size) - len(own)
        with torch.no_grad():
            loader = DataLoader(
                self.valid,
                batch_sampler=own + batches[:1] * spare,
                collate_fn=self.collate,
                generator=torch.Generator(),
            )
            for number, batch in enumerate(loader):
                inputs = self._prepare_inputs(batch)
                outputs = self.model(**inputs)
                if number < len(own):
                    figures.add(outputs, inputs["labels"], inputs["input_values"].numel())
        self.model.train()
        metrics = {f"eval_{name}": value for name, value in figures.take().items() if name != "hours"}
        metrics["eval_seconds"] = self.figures.pause() - paused
        self.figures.go_on(paused)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures; those of training come with what was counted since the last time."""
        if "loss" in logs:
            logs = {**logs, **self.figures.take()}
        if "train_runtime" not in logs:  # Trainer's summary at the end, which counts whatever a resumption skipped
            super().log(logs, start_time)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> float:
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
        self.guard.check(norm, self.state.global_step + 1)
        return norm

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # While the norm explodes none is removed: the last good one may be several back.
        limit = self.args.save_total_limit
        self.args.save_total_limit = None if self.guard.is_exploding else limit
        super()._save_checkpoint(*args, **kwargs)
        self.args.save_total_limit = limit

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.valid is not None:
            step, every = self.state.global_step, self.config.steps_between_evaluations
            due = step % every == 0 or step == self.state.max_steps
            # Trainer comes here once more when the run, one epoch to it, is over.
            self.control.should_evaluate = due and step != self._evaluated
            self._evaluated = step
        # Sums that a checkpoint does not hold are taken before it is written.
        self.control.should_log |= self.control.should_save or self.control.should_evaluate
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _valid_batches(self) -> list[list[Crop]]:
        """Held-back recordings, the longest first, as many at a time as in training."""
        assert self.valid is not None
        limit, lengths = self.batches.batch_samples, self.valid.recordings.lengths.tolist()
        longest = round(self.config.crop_seconds * self.model_config.sampling_rate)
        crops = sorted(
            (Crop(0, index, min(length, longest)) for index, length in enumerate(lengths)), key=_longest_first
        )
        batches: list[list[Crop]] = []
        for crop in crops:
            if not batches or (len(batches[-1]) + 1) * batches[-1][0].samples > limit:
                batches.append([])
            batches[-1].append(crop)
        return batches


def _longest_first(crop: Crop) -> int:
    return -crop.samples
