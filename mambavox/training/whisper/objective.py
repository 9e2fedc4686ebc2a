"""What a Whisper learns and how it is chosen: cross-entropy of tokens, error rates of generated transcripts."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn
from transformers import EvalPrediction, Seq2SeqTrainer

from mambavox.runs.folder import RunFolder
from mambavox.training.engine import EpochTrainer
from mambavox.training.recognition import error_rates_line
from mambavox.training.whisper.config import WhisperConfig
from mambavox.training.whisper.data import TranscriptCollator, TranscriptDataset


class WhisperTrainer(EpochTrainer, Seq2SeqTrainer):
    """Trains on tokens and transcribes the valid split once an epoch; keeps the epoch with the lowest error rate.

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
            valid_line=error_rates_line,
            console=console,
            schedule={
                # Of power 1: a line to lr_end.
                "lr_scheduler_type": "polynomial",
                "lr_scheduler_kwargs": {"power": 1.0, "lr_end": config.final_learning_rate},
                "predict_with_generate": True,
            },
            compute_metrics=self._figures,
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Transcribe a split and score it; as ``Seq2SeqTrainer``'s, with the run's generation."""
        figures: dict[str, float] = super().evaluate(*args, **{**self.generation, **kwargs})
        return figures

    def transcribe(self, split: TranscriptDataset) -> list[list[int]]:
        """Tokens generated for each recording of a split, filled up to one length."""
        self.compute_metrics = None  # it knows the valid split's transcripts alone
        try:
            tokens: list[list[int]] = np.asarray(self.predict(split, **self.generation).predictions).tolist()
        finally:
            self.compute_metrics = self._figures
        return tokens

    def _figures(self, prediction: EvalPrediction) -> dict[str, float]:
        return self.error_rates(np.asarray(prediction.predictions).tolist())
