"""transformers' ``Trainer`` for adapters on audio backbones."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState, PrinterCallback

from mambavox.errors import ConfigError, DivergedError
from mambavox.training.config import AdaptConfig
from mambavox.training.devices import take_one_gpu
from mambavox.training.features import Collator, EpochSampler, FeatureDataset
from mambavox.training.frozen_front import CachedCollator, CachedFeatures, FrozenFront
from mambavox.training.modes import set_training_mode
from mambavox.training.parameter_groups import parameter_groups
from mambavox.training.rank_allocation import RankAllocation

# The paper's; only the weight decay's targets differ (see parameter_groups).
_BETAS = (0.9, 0.98)
_EPSILON = 1e-6
_FUSED = ("cpu", "cuda")


class TrainedPartsOnly:
    """Part of a ``Trainer``: its checkpoints hold what is trained, AdaLoRA's ranks with it, and early stopping's end.

    Attributes:
        rank_allocation: what moves AdaLoRA's ranks; none for other methods.
    """

    rank_allocation: RankAllocation | None
    model: Any
    args: Any
    state: TrainerState
    _load_callback_state: Callable[[], None]
    _load_best_model: Callable[[], None]

    def finish_stopped(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one at which early stopping had already ended the run; then load its best epoch."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        stopping = state.stateful_callbacks.get("EarlyStoppingCallback")
        if not stopping or stopping["attributes"]["early_stopping_patience_counter"] < stopping["args"][_PATIENCE]:
            return False
        self.state = state
        self._load_callback_state()
        self._load_best_model()
        return True

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save_trained(self.model, folder)
        if self.rank_allocation is not None:
            self.rank_allocation.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        if self.rank_allocation is not None:
            self.rank_allocation.load(Path(resume_from_checkpoint))


class AdaptTrainer(TrainedPartsOnly, Trainer):
    """``Trainer`` whose frozen backbone stays in evaluation mode, whose order of data depends on seed and epoch alone.

    It evaluates, logs and saves once an epoch, keeps the best and the last checkpoint, and saves only what is trained.

    Args:
        model: what ``apply_method`` returned.
        config: the run's configuration.
        learning_rate: peak.
        train: the training part.
        valid: the part that chooses the best epoch; empty: the last epoch is kept.
        checkpoints: folder of the checkpoints.
        tensorboard: folder of TensorBoard logs, or ``None``.
        console: where progress goes, or ``None``.

    Raises:
        ConfigError: the device that was asked for is not there, or early stopping has nothing to watch.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: nn.Module,
        config: AdaptConfig,
        *,
        learning_rate: float,
        train: FeatureDataset,
        valid: FeatureDataset,
        checkpoints: Path,
        tensorboard: Path | None,
        console: Console | None,
    ) -> None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device=cuda, but torch sees no GPU here; leave it at auto, or install a CUDA build")
        if config.patience is not None and not len(valid):
            raise ConfigError(f"patience={config.patience}, but there is no valid part to watch; set valid_fraction")
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        chooses = "epoch" if len(valid) else "no"
        arguments = TrainingArguments(
            # Absolute, because the path of the best checkpoint is kept over a resumption from elsewhere.
            output_dir=str(checkpoints.absolute()),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_ratio,
            lr_scheduler_type="cosine",
            max_grad_norm=config.max_grad_norm,
            eval_strategy=chooses,
            save_strategy="epoch",
            logging_strategy="epoch",
            logging_nan_inf_filter=False,  # a diverging run must end, not look fine
            save_total_limit=1,
            load_best_model_at_end=bool(len(valid)),
            metric_for_best_model="rank" if len(valid) else None,
            greater_is_better=True if len(valid) else None,
            restore_callback_states_from_checkpoint=True,
            use_cpu=not on_gpu,
            bf16=(on_gpu and torch.cuda.is_bf16_supported()) if config.bf16 is None else config.bf16,
            seed=config.seed,
            dataloader_num_workers=config.num_workers,
            dataloader_pin_memory=on_gpu,
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
            report_to="none",
        )
        take_one_gpu(arguments, console, "CUDA_VISIBLE_DEVICES chooses which")
        super().__init__(
            model=model,
            args=arguments,
            data_collator=Collator(train.front_end),
            train_dataset=train,
            eval_dataset=valid if len(valid) else None,
            compute_metrics=_figures,
            compute_loss_func=_mean_cross_entropy,
        )
        self.length_buckets = config.length_buckets
        # Some hosts take **kwargs and pass the number of items on to layers that have no use for it.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(TrainingClock())
        self.add_callback(Divergence())
        self.rank_allocation = RankAllocation.of(model)
        if self.rank_allocation is not None:
            self.add_callback(self.rank_allocation)
        if config.patience is not None:
            self.add_callback(EarlyStoppingCallback(config.patience))
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter  # a second of imports that a run without it saves

            self.add_callback(TensorBoardCallback(SummaryWriter(str(tensorboard))))
        if console is not None:
            self.add_callback(_ProgressBar(console, config.epochs))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on the trainable parameters, weight decay where it belongs."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.args.weight_decay)
            # One kernel for all tensors: an adapter has hundreds of small ones.
            fused = self.args.device.type in _FUSED
            rate = self.args.learning_rate
            self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=_BETAS, eps=_EPSILON, fused=fused)
        return self.optimizer

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch; puts the frozen parts back into evaluation mode, which ``Trainer`` undoes."""
        training = model.training
        if training:
            set_training_mode(self.accelerator.unwrap_model(model))
        loss = super().compute_loss(model, *args, **kwargs)
        if self.rank_allocation is None or not training:
            return loss
        return loss + self.rank_allocation.penalty() / self.current_gradient_accumulation_steps

    def cache_front(self, front: FrozenFront, folder: Path) -> None:
        """Run what is frozen before the first trained layer once for each recording, and train from there on.

        Args:
            front: of the model.
            folder: where the results are kept while the process lives.
        """
        start, arguments = time.perf_counter(), self.args
        for name in ("train_dataset", "eval_dataset"):
            dataset = getattr(self, name)
            if dataset is not None:
                size = arguments.per_device_eval_batch_size
                setattr(self, name, CachedFeatures(dataset, front, size, folder, bf16=arguments.bf16))
                self.data_collator = CachedCollator(dataset.front_end)
        self._clock.before += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Seconds spent in training so far, those before a resumption included."""
        return self._clock.seconds

    @property
    def _clock(self) -> "TrainingClock":
        return next(item for item in self.callback_handler.callbacks if isinstance(item, TrainingClock))

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        size = self.args.per_device_train_batch_size if self.length_buckets else None
        return EpochSampler(train_dataset or self.train_dataset, self.args.seed, bucketed=size)


def save_trained(model: Any, folder: Path) -> None:
    """Write what was trained: a PEFT adapter with its head and rows of tokens, or the whole model."""
    # "auto" would ask the Hub for the backbone's vocabulary, and save all of a larger one.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, **options)


def _mean_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy over all the recordings of one update, however they are spread over accumulated batches."""
    total = F.cross_entropy(outputs["logits"].float(), labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def _figures(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and the rank by which the best epoch is chosen: accuracy and, among equals, the lower loss."""
    logits, targets = torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)
    correct = int((logits.argmax(dim=-1) == targets).sum())
    likelihood = math.exp(
        -float(F.cross_entropy(logits.float(), targets))
    )  # between 0 and 1, like less than a recording
    return {"accuracy": correct / len(targets), "rank": correct + likelihood}


_PATIENCE = "early_stopping_patience"


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


class Divergence(TrainerCallback):
    """Ends a run whose loss is no number any more."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the loss."""
        loss = kwargs["logs"].get("loss")
        if loss is not None and not math.isfinite(loss):
            raise DivergedError(
                f"the training loss is {loss} in epoch {state.epoch:g}: the run has diverged. "
                f"Lower the learning rate (it is {args.learning_rate:g}) with --learning-rate"
            )


class _ProgressBar(TrainerCallback):
    """A bar on a terminal, a line an epoch elsewhere."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console = console
        self.epochs = epochs
        self.loss = math.nan
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self.loss = logs["loss"]
            if args.eval_strategy == "no":
                self._tell(state, "")

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._tell(state, f"  valid accuracy {100 * kwargs['metrics']['eval_accuracy']:.1f} %")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.progress.stop()

    def _tell(self, state: TrainerState, valid: str) -> None:
        line = f"epoch {round(state.epoch or 0)}/{self.epochs}  loss {self.loss:.4f}{valid}"
        self.progress.update(self.task, description=line)
        if not self.console.is_terminal:
            self.console.print(line)
