"""What every training shares: transformers' arguments, optimiser, checkpoints, callbacks.

``RunTrainer`` is the base of every task's trainer; ``EpochTrainer`` that of the tasks that adapt a backbone.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from mambavox.errors import ConfigError
from mambavox.files import make_readable
from mambavox.runs.config import AdaptConfig, RunConfig
from mambavox.runs.folder import RunFolder, seal_checkpoint
from mambavox.training.callbacks import Divergence, EpochProgress, GradientCheck, TrainingClock
from mambavox.training.modes import compute_layers_again, set_training_mode
from mambavox.training.parameter_groups import parameter_groups
from mambavox.training.rank_allocation import RankAllocation
from mambavox.training.sampling import EpochSampler

LIBRARIES = ("mambavox", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")
"""Libraries whose versions a run writes down."""

# Of both papers; only the weight decay's targets differ (see parameter_groups).
_BETAS = (0.9, 0.98)
_EPSILON = 1e-6
_FUSED = ("cpu", "cuda")
_CHECKPOINTS = 2  # that are kept, the best among them
_WAITING_SECONDS = 7 * 24 * 3600  # that other processes wait for one that prepares data
_PATIENCE = "early_stopping_patience"


def takes_gpu(config: RunConfig) -> bool:
    """Whether a run is trained on a GPU.

    Raises:
        ConfigError: it asks for one, and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch sees no GPU here; leave it at auto, or install a CUDA build of torch")
    return config.device != "cpu" and torch.cuda.is_available()


def training_arguments(
    config: RunConfig, checkpoints: Path, console: Console | None, *, bf16_on_cpu: bool = False, **options: Any
) -> Seq2SeqTrainingArguments:
    """What transformers' ``Trainer`` is told. Under torchrun this joins the other processes.

    Args:
        config: of the run.
        checkpoints: folder of the checkpoints.
        console: told of GPUs that are not used.
        bf16_on_cpu: whether precision ``auto`` is bfloat16 on a CPU that has instructions for it, too.
        options: what the kind of training adds.

    Raises:
        ConfigError: the device that was asked for is not there.
    """
    on_gpu = takes_gpu(config)
    bfloat16 = config.precision == "bfloat16"
    if config.precision == "auto":
        bfloat16 = torch.cuda.is_bf16_supported() if on_gpu else bf16_on_cpu and _multiplies_bfloat16()
    shared: dict[str, Any] = {
        # Absolute, because the path of the best checkpoint is kept over a resumption from elsewhere.
        "output_dir": str(checkpoints.absolute()),
        "learning_rate": config.peak_learning_rate,
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "logging_nan_inf_filter": False,  # a diverging run must end, not look fine
        "save_total_limit": _CHECKPOINTS,
        "restore_callback_states_from_checkpoint": True,
        "use_cpu": not on_gpu,
        "bf16": bfloat16,
        "activation_checkpointing": config.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if config.gradient_checkpointing else None,
        "seed": config.seed,
        "dataloader_num_workers": config.num_workers,
        "dataloader_pin_memory": on_gpu,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "ddp_timeout": _WAITING_SECONDS,
        "disable_tqdm": True,
        "report_to": "none",
    }
    arguments = Seq2SeqTrainingArguments(**{**shared, **options})
    if arguments.n_gpu > 1:
        # Trainer would cut each batch among all of them.
        if console is not None:
            mend = f"all of them: torchrun --nproc-per-node {arguments.n_gpu} -m mambavox {config.command} ..."
            console.print(f"one of {arguments.n_gpu} GPUs is used; {mend}", markup=False)
        arguments._n_gpu = 1
    return arguments


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; a step takes little more than half the time then."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class RunTrainer(Trainer):
    """``Trainer`` with this package's optimiser, clock and checkpoints that say whether they are whole.

    Args:
        model: to train.
        arguments: of :func:`training_arguments`.
        tensorboard: folder of TensorBoard logs, or ``None``.
        options: further keywords of ``Trainer``.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self, model: nn.Module, arguments: TrainingArguments, *, tensorboard: Path | None, **options: Any
    ) -> None:
        super().__init__(model=model, args=arguments, **options)
        self.remove_callback(PrinterCallback)
        self.clock = TrainingClock()
        self.add_callback(self.clock)
        if tensorboard is not None and self.is_world_process_zero():
            from torch.utils.tensorboard import SummaryWriter  # a second of imports that a run without it saves

            self.add_callback(TensorBoardCallback(SummaryWriter(str(tensorboard))))

    @property
    def seconds(self) -> float:
        """Seconds spent in training so far, those before a resumption included."""
        return next(item for item in self.callback_handler.callbacks if isinstance(item, TrainingClock)).seconds

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on the trainable parameters, weight decay where it belongs."""
        if self.optimizer is None:
            groups = parameter_groups(model or self.model, self.args.weight_decay)
            # One kernel for all tensors: an adapter has hundreds of small ones.
            fused = self.args.device.type in _FUSED
            rate = self.args.learning_rate
            self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=_BETAS, eps=_EPSILON, fused=fused)
        return self.optimizer

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        folder = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.is_dir():
            make_readable(folder)
            seal_checkpoint(folder)


class EpochTrainer(RunTrainer):
    """Trains what a method adds to a backbone, whose frozen parts stay in evaluation mode.

    It evaluates, logs and saves once an epoch, keeps the best epoch and the last ones, and saves only what is trained.
    The order of the data depends on seed and epoch alone.

    Args:
        model: what ``apply_method`` returned.
        config: of the run.
        folder: of the run.
        train: what is learned from, a data set with ``epoch`` and ``lengths``.
        valid: what the best epoch is chosen on; empty: the last epoch is kept.
        collate: makes batches.
        chooses: name of the figure by which the best epoch is chosen.
        greater: whether more of it is better.
        valid_line: the figures of the valid split in words.
        console: where progress goes, or ``None``.
        schedule: ``lr_scheduler_type`` and what goes with it.
        options: further keywords of ``Trainer``.

    Attributes:
        classes: class of each recording that is learned from, to hear all classes equally often; ``None``: each
            recording is heard once an epoch.

    Raises:
        ConfigError: the device that was asked for is not there, or early stopping has nothing to watch.
    """

    classes: Sequence[int] | None = None

    def __init__(
        self,
        model: nn.Module,
        config: AdaptConfig,
        folder: RunFolder,
        *,
        train: Any,
        valid: Any,
        collate: Callable[[Sequence[Any]], dict[str, Tensor]],
        chooses: str,
        greater: bool,
        valid_line: Callable[[Mapping[str, float]], str],
        console: Console | None,
        schedule: Mapping[str, Any],
        evaluation_batch: int | None = None,
        **options: Any,
    ) -> None:
        if config.patience is not None and not len(valid):
            raise ConfigError(
                f"patience={config.patience}, but there is no valid split to watch; set valid_fraction, or leave it out"
            )
        watches = bool(len(valid))
        arguments = training_arguments(
            config,
            folder.checkpoints,
            console,
            per_device_eval_batch_size=evaluation_batch or config.evaluation_batch,
            **_once_an_epoch(config, (chooses, greater) if watches else None),
            **schedule,
        )
        super().__init__(
            model,
            arguments,
            tensorboard=folder.tensorboard if config.tensorboard else None,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=valid if watches else None,
            **options,
        )
        self.config = config
        # Some hosts take **kwargs and pass the number of items on to layers that have no use for it.
        self.model_accepts_loss_kwargs = False
        self.divergence = Divergence(console)
        self.rank_allocation = RankAllocation.of(model)
        callbacks = [
            self.divergence,
            GradientCheck(model),
            self.rank_allocation,
            None if config.patience is None else EarlyStoppingCallback(config.patience),
            None if console is None else EpochProgress(console, config.epochs, valid_line),
        ]
        for callback in filter(None, callbacks):
            self.add_callback(callback)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch; puts the frozen parts back into evaluation mode, which ``Trainer`` undoes."""
        training = model.training
        if training:
            whole = self.accelerator.unwrap_model(model)
            set_training_mode(whole)
            if self.args.activation_checkpointing:
                compute_layers_again(whole)
        loss = self.batch_loss(model, inputs, *args, **kwargs)
        if training:
            self.divergence.see(loss)
            if self.rank_allocation is not None:
                # Trainer divides by the accumulated steps itself, unless a loss function of ours has done so.
                steps = 1 if self.compute_loss_func is None else self.current_gradient_accumulation_steps
                loss = loss + self.rank_allocation.penalty() / steps
        return loss

    def batch_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch, by the model or the run's loss function."""
        return super().compute_loss(model, inputs, *args, **kwargs)

    def learn(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint on if there is one; then the best epoch is in the model."""
        if checkpoint is None or not self._stopped_at(checkpoint):
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def _stopped_at(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one at which early stopping had already ended the run; then load its best epoch."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        stopping = state.stateful_callbacks.get("EarlyStoppingCallback")
        if not stopping or stopping["attributes"]["early_stopping_patience_counter"] < stopping["args"][_PATIENCE]:
            return False
        self.state = state
        self._load_callback_state()
        self._load_best_model()
        return True

    @property
    def best_epoch(self) -> int:
        """Number of the epoch that was kept."""
        steps = self.state.max_steps / self.config.epochs
        return round((self.state.best_global_step or self.state.global_step) / max(steps, 1e-9))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return  # Trainer comes here in every process, and only one may write
        folder = Path(output_dir or self.args.output_dir)
        save_trained(self.model, folder)
        if self.rank_allocation is not None:
            self.rank_allocation.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.rank_allocation is not None:
            self.rank_allocation.load(Path(resume_from_checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        size = self.args.per_device_train_batch_size if self.config.length_buckets else None
        return EpochSampler(train_dataset or self.train_dataset, self.args.seed, bucketed=size, classes=self.classes)


def _once_an_epoch(config: AdaptConfig, choice: tuple[str, bool] | None) -> dict[str, Any]:
    """Arguments of a training that is looked at once an epoch; the choice is a figure and whether more is better."""
    return {
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "eval_strategy": "epoch" if choice else "no",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "load_best_model_at_end": bool(choice),
        "metric_for_best_model": choice[0] if choice else None,
        "greater_is_better": choice[1] if choice else None,
    }


def save_trained(model: Any, folder: Path) -> None:
    """Write what was trained: a PEFT adapter with its head and rows of tokens, or the whole model."""
    # "auto" would ask the Hub for the backbone's vocabulary, and save all of a larger one.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, **options)


def learning_curve(history: Sequence[Mapping[str, float]], scores: Sequence[str]) -> list[dict[str, float]]:
    """One row an epoch of ``Trainer``'s log.

    Args:
        history: ``TrainerState.log_history``.
        scores: names of the figures of the valid split that belong to the curve.
    """
    names = {"loss": "train_loss", "eval_loss": "valid_loss", **{f"eval_{name}": f"valid_{name}" for name in scores}}
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        row = rows.setdefault(round(entry["epoch"]), {})
        row.update({name: entry[key] for key, name in names.items() if key in entry})
    return [{"epoch": epoch, **row} for epoch, row in sorted(rows.items())]


def device_name(device: torch.device) -> str:
    """A device in words: the GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a run depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
