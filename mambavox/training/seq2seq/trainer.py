"""transformers' ``Seq2SeqTrainer`` for Whisper with adapters."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerState,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from mambavox.errors import ConfigError
from mambavox.training.devices import take_one_gpu
from mambavox.training.features import EpochSampler
from mambavox.training.modes import set_training_mode
from mambavox.training.parameter_groups import parameter_groups
from mambavox.training.rank_allocation import RankAllocation
from mambavox.training.seq2seq.config import Seq2SeqConfig
from mambavox.training.seq2seq.transcripts import TranscriptCollator, TranscriptDataset
from mambavox.training.trainer import Divergence, TrainedPartsOnly, TrainingClock

# The MambAdapter paper's.
_BETAS = (0.9, 0.98)
_EPSILON = 1e-6


class TranscriptTrainer(TrainedPartsOnly, Seq2SeqTrainer):
    """``Seq2SeqTrainer`` whose frozen Whisper stays in evaluation mode, whose order of data depends on seed and epoch.

    It transcribes the valid part, logs and saves once an epoch, keeps the best and the last checkpoint, and saves only
    what is trained.

    Args:
        model: what ``apply_method`` returned.
        config: the run's configuration.
        train: the training part.
        valid: the part that chooses the best epoch; empty: the last epoch is kept.
        generation: keywords of ``generate``.
        error_rates: those of the valid part, ``wer`` and ``cer``, by the tokens generated for its recordings.
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
        config: Seq2SeqConfig,
        *,
        train: TranscriptDataset,
        valid: TranscriptDataset,
        generation: Mapping[str, Any],
        error_rates: Callable[[list[list[int]]], dict[str, float]],
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
        arguments = Seq2SeqTrainingArguments(
            # Absolute, because the path of the best checkpoint is kept over a resumption from elsewhere.
            output_dir=str(checkpoints.absolute()),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.eval_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.peak_learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_ratio,
            # Of power 1: a line to lr_end.
            lr_scheduler_type="polynomial",
            lr_scheduler_kwargs={"power": 1.0, "lr_end": config.final_learning_rate},
            max_grad_norm=config.max_grad_norm,
            activation_checkpointing=config.gradient_checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
            eval_strategy=chooses,
            save_strategy="epoch",
            logging_strategy="epoch",
            logging_nan_inf_filter=False,  # a diverging run must end, not look fine
            save_total_limit=1,
            load_best_model_at_end=bool(len(valid)),
            metric_for_best_model=config.metric_for_best_model if len(valid) else None,
            greater_is_better=False if len(valid) else None,
            predict_with_generate=True,
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
            data_collator=TranscriptCollator(train.front_end),
            train_dataset=train,
            eval_dataset=valid if len(valid) else None,
            compute_metrics=self._figures,
        )
        self.generation = dict(generation)
        self.error_rates = error_rates
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(TrainingClock())
        self.add_callback(Divergence())
        if config.patience is not None:
            self.add_callback(EarlyStoppingCallback(config.patience))
        self.rank_allocation = RankAllocation.of(model)
        if self.rank_allocation is not None:
            self.add_callback(self.rank_allocation)
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter  # a second of imports that a run without it saves

            self.add_callback(TensorBoardCallback(SummaryWriter(str(tensorboard))))
        if console is not None:
            self.add_callback(_EpochLine(console, config.epochs))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW on the trainable parameters, weight decay where it belongs."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.args.weight_decay)
            fused = self.args.device.type in ("cpu", "cuda")
            rate = self.args.learning_rate
            self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=_BETAS, eps=_EPSILON, fused=fused)
        return self.optimizer

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch; puts the frozen parts back into evaluation mode, which ``Trainer`` undoes."""
        training = model.training
        if training:
            whole = self.accelerator.unwrap_model(model)
            set_training_mode(whole)
            if self.args.activation_checkpointing and isinstance(whole, PeftModel):
                _train_checkpointed_layers(whole)
        loss = super().compute_loss(model, *args, **kwargs)
        if self.rank_allocation is None or not training:
            return loss
        return loss + self.rank_allocation.penalty()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Transcribe a part and score it; as ``Seq2SeqTrainer``'s, with the run's generation."""
        figures: dict[str, float] = super().evaluate(*args, **{**self.generation, **kwargs})
        return figures

    def transcribe(self, part: TranscriptDataset) -> list[list[int]]:
        """Tokens generated for each recording of a part, filled up to one length."""
        self.compute_metrics = None  # it knows the valid part's transcripts alone
        try:
            tokens: list[list[int]] = np.asarray(self.predict(part, **self.generation).predictions).tolist()
        finally:
            self.compute_metrics = self._figures
        return tokens

    @property
    def seconds(self) -> float:
        """Seconds spent in training so far, those before a resumption included."""
        callbacks = self.callback_handler.callbacks
        return next(item for item in callbacks if isinstance(item, TrainingClock)).seconds

    def _figures(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.error_rates(np.asarray(prediction.predictions).tolist())

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return EpochSampler(train_dataset or self.train_dataset, self.args.seed)


def _train_checkpointed_layers(model: Any) -> None:
    """Put layers that are to be computed again into training mode, as transformers asks, but for their dropout."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) and hasattr(module, "activation_dropout"):
            module.training = True
            module.dropout = module.activation_dropout = 0.0


class _EpochLine(TrainerCallback):
    """A line an epoch."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console = console
        self.epochs = epochs
        self.loss = float("nan")

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            self.loss = logs["loss"]
            if args.eval_strategy == "no":
                self._tell(state, "")

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if "eval_wer" in kwargs["metrics"]:
            figures = kwargs["metrics"]
            self._tell(state, f"  valid WER {100 * figures['eval_wer']:.1f} %  CER {100 * figures['eval_cer']:.1f} %")

    def _tell(self, state: TrainerState, valid: str) -> None:
        self.console.print(f"epoch {round(state.epoch or 0)}/{self.epochs}  loss {self.loss:.4f}{valid}")
