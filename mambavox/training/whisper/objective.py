"""What a Whisper learns and how it is chosen: cross-entropy of tokens, error rates of generated transcripts."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import EvalPrediction, Seq2SeqTrainer, get_polynomial_decay_schedule_with_warmup

from mambavox.runs.folder import RunFolder
from mambavox.training.engine import EpochTrainer
from mambavox.training.recognition import valid_line
from mambavox.training.whisper.config import WhisperConfig
from mambavox.training.whisper.data import IGNORED, TranscriptCollator, TranscriptDataset


class WhisperTrainer(EpochTrainer, Seq2SeqTrainer):
    """Trains on tokens; keeps the epoch with the lowest error rate, or with the lowest loss.

    For an error rate the valid split is transcribed once an epoch; for the loss nothing is transcribed in training.

    Args:
        model: what ``apply_method`` returned.
        config: of the run.
        folder: of the run.
        train: what is learned from.
        valid: what the best epoch is chosen on; empty: the last epoch is kept.
        generation: keywords of ``generate``.
        error_rates: those of the valid split, ``wer`` and ``cer``, by the tokens generated for its recordings.
        console: where progress goes, or ``None``.

    Raises:
        ConfigError: the device that was asked for is not there, or early stopping has nothing to watch.
    """

    config: WhisperConfig

    def __init__(
        self,
        model: nn.Module,
        config: WhisperConfig,
        folder: RunFolder,
        *,
        train: TranscriptDataset,
        valid: TranscriptDataset,
        generation: Mapping[str, Any],
        error_rates: Callable[[list[list[int]]], dict[str, float]],
        console: Console | None,
    ) -> None:
        self.generation = dict(generation)
        self.error_rates = error_rates
        super().__init__(
            model,
            config,
            folder,
            train=train,
            valid=valid,
            collate=TranscriptCollator(train.front_end),
            chooses=config.metric_for_best_model,
            greater=False,
            valid_line=valid_line,
            console=console,
            schedule={"predict_with_generate": config.metric_for_best_model != "loss"},
            compute_metrics=self._figures,
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """A rise and a line to the final learning rate; at least one update is left for the line."""
        self.lr_scheduler = get_polynomial_decay_schedule_with_warmup(
            optimizer or self.create_optimizer(),
            min(self.args.get_warmup_steps(num_training_steps), num_training_steps - 1),
            num_training_steps,
            lr_end=self.config.final_learning_rate,
            power=1.0,
        )
        return self.lr_scheduler

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Transcribe a split and score it; as ``Seq2SeqTrainer``'s, with the run's generation."""
        figures: dict[str, float] = super().evaluate(*args, **{**self.generation, **kwargs})
        return figures

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """Tokens that are generated or, where the loss chooses, the cross-entropy of each target; and the targets."""
        if self.args.predict_with_generate:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits.float()
        labels = inputs["labels"]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return None, loss.view_as(labels), labels

    def transcribe(self, split: TranscriptDataset) -> list[list[int]]:
        """Tokens generated for each recording of a split, filled up to one length."""
        generates = self.args.predict_with_generate
        self.compute_metrics = None  # it knows the valid split's transcripts alone
        self.args.predict_with_generate = True
        try:
            tokens: list[list[int]] = np.asarray(self.predict(split, **self.generation).predictions).tolist()
        finally:
            self.compute_metrics, self.args.predict_with_generate = self._figures, generates
        return tokens

    def _figures(self, prediction: EvalPrediction) -> dict[str, float]:
        if self.args.predict_with_generate:
            return self.error_rates(np.asarray(prediction.predictions).tolist())
        # Over all targets alike, whatever batches they came in.
        return {"loss": float(np.asarray(prediction.predictions)[np.asarray(prediction.label_ids) != IGNORED].mean())}
