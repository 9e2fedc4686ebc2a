"""What a CTC model learns and how it is chosen: masks, tri-stage schedule, frozen beginning, error rates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from rich.console import Console
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState

from mambavox.asr.decoding import greedy_search
from mambavox.asr.metrics import TranscriptScores, score_transcripts
from mambavox.asr.text import normalize_text
from mambavox.asr.tokenizer import Vocabulary
from mambavox.runs.folder import RunFolder
from mambavox.training.ctc.config import CtcConfig
from mambavox.training.ctc.data import SpeechCollator, SpeechDataset
from mambavox.training.engine import EpochTrainer
from mambavox.training.recognition import valid_line

_FINAL_SCALE = 0.05
_HEAD = "lm_head"
_IGNORED = -100


class CtcTrainer(EpochTrainer):
    """Trains a CTC model and keeps the epoch with the fewest errors on the valid split.

    Args:
        model: a CTC model, or a PEFT model around one.
        config: of the run.
        folder: of the run.
        vocabulary: of the model.
        extractor: of the model.
        train: what is learned from.
        valid: what the best epoch is chosen on; empty: the last epoch is kept.
        console: where progress goes, or ``None``.

    Raises:
        ConfigError: the device that was asked for is not there, or early stopping has nothing to watch.
    """

    config: CtcConfig

    def __init__(
        self,
        model: nn.Module,
        config: CtcConfig,
        folder: RunFolder,
        *,
        vocabulary: Vocabulary,
        extractor: Any,
        train: SpeechDataset,
        valid: SpeechDataset,
        console: Console | None,
    ) -> None:
        self.vocabulary = vocabulary
        self.references = valid.split.targets
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        super().__init__(
            model,
            config,
            folder,
            train=train,
            valid=valid,
            collate=SpeechCollator(base, extractor, config),
            chooses="loss" if config.metric_for_best_model == "loss" else "rank",
            greater=config.metric_for_best_model != "loss",
            valid_line=valid_line,
            console=console,
            schedule={},
            # Without a mask, padding would change what a recording's neighbours in the batch are heard as.
            evaluation_batch=None if extractor.return_attention_mask else 1,
            compute_metrics=self._figures,
        )
        if config.frozen_ratio:
            self.add_callback(_FrozenBeginning(model, config.frozen_ratio))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Rise, hold, exponential decay to 5 % of the peak."""
        schedule = tri_stage(num_training_steps, self.config.warmup_ratio, self.config.hold_ratio)
        scheduler = LambdaLR(optimizer or self.create_optimizer(), schedule)
        self.lr_scheduler = scheduler
        return scheduler

    def batch_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The CTC loss of one training batch, with hidden spans of frames and channels."""
        hearing = {name: value for name, value in inputs.items() if name in ("input_values", "attention_mask")}
        with hidden_spans(self.accelerator.unwrap_model(model), inputs["time_mask"], inputs["channel_mask"]):
            logits = model(**hearing).logits
        return ctc_loss(logits, inputs["frames"], inputs["labels"], self.vocabulary.blank)

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Loss, tokens of the likeliest alignment (frames beyond a recording's end are -100), and labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            hearing = {name: value for name, value in inputs.items() if name in ("input_values", "attention_mask")}
            logits = model(**hearing).logits
            loss = ctc_loss(logits, inputs["frames"], inputs["labels"], self.vocabulary.blank)
            best = logits.argmax(dim=-1)
            beyond = torch.arange(best.shape[1], device=best.device)[None] >= inputs["frames"][:, None]
        return loss, best.masked_fill(beyond, _IGNORED), inputs["labels"]

    def _figures(self, prediction: EvalPrediction) -> dict[str, float]:
        """Error rates, and the rank by which the best epoch is chosen where the loss does not choose it."""
        texts = [self.vocabulary.text(collapse(row, self.vocabulary.blank)) for row in prediction.predictions]
        heard = [normalize_text(text, self.config.language) for text in texts]
        scores = score_transcripts(self.references, heard[: len(self.references)], language=self.config.language)
        return {**scores.rates, "rank": rank(scores, self.config.metric_for_best_model)}


def rank(scores: TranscriptScores, metric: str) -> float:
    """What the best epoch has most of: fewer errors of one kind and, among equals, a lower rate of the other.

    Args:
        scores: of the valid split.
        metric: ``"wer"`` or ``"cer"``.
    """
    first, second = (scores.wer, scores.cer) if metric == "wer" else (scores.cer, scores.wer)
    # The second term is below 1, whatever the rate: less than one error.
    return -first.counts.errors - second.rate / (1 + second.rate)


def collapse(best: Any, blank: int) -> list[int]:
    """Tokens of an alignment, without repetitions, blanks and -100."""
    frames = [int(token) for token in best if token != _IGNORED]
    one_hot = np.zeros((len(frames), max([*frames, blank]) + 1))
    one_hot[np.arange(len(frames)), frames] = 1.0
    return greedy_search(one_hot, blank)


def ctc_loss(logits: Tensor, frames: Tensor, labels: Tensor, blank: int) -> Tensor:
    """CTC loss by tokens, mean over recordings; what no alignment fits counts nothing.

    Args:
        logits: ``(batch, time, tokens)``.
        frames: ``(batch,)`` valid frames of each row.
        labels: ``(batch, length)`` tokens; negative numbers are padding.
        blank: number of the blank.
    """
    spoken = labels >= 0
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
    return F.ctc_loss(
        log_probs, labels.masked_select(spoken), frames, spoken.sum(dim=-1), blank=blank, zero_infinity=True
    )


@contextmanager
def hidden_spans(model: Any, time_mask: Tensor, channel_mask: Tensor) -> Iterator[None]:
    """Let a model's encoder miss spans of frames, replaced by its mask embedding, and channels, replaced by zeros.

    Args:
        model: a CTC model or a PEFT model around one.
        time_mask: ``(batch, time)`` boolean, true where hidden.
        channel_mask: ``(batch, channels)`` likewise.

    Source:
        SpecAugment (arXiv 1904.08779) on the projected features, as wav2vec 2.0 (arXiv 2006.11477) does it.
    """
    base = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model

    def hide(module: nn.Module, inputs: Any, output: Any) -> Any:
        # wav2vec2 and WavLM also return the features before the projection.
        states = output[0] if isinstance(output, tuple) else output
        embedding = getattr(base, "masked_spec_embed", None)
        fill = states.new_zeros(()) if embedding is None else embedding.to(states.dtype)
        states = torch.where(time_mask[:, :, None], fill, states)
        states = states.masked_fill(channel_mask[:, None, :], 0.0)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = base.feature_projection.register_forward_hook(hide)
    try:
        yield
    finally:
        handle.remove()


def tri_stage(steps: int, warmup_ratio: float, hold_ratio: float) -> Any:
    """Factor of the learning rate at a step: 1 % to 100 % linearly, hold, exponentially to 5 %.

    Args:
        steps: of the whole training.
        warmup_ratio: share of the rise.
        hold_ratio: share of the hold.

    Source:
        wav2vec 2.0 (arXiv 2006.11477), section 4.3; fairseq's tri-stage scheduler.
    """
    warmup, hold = round(warmup_ratio * steps), round(hold_ratio * steps)
    decay = max(steps - warmup - hold, 1)

    def factor(step: int) -> float:
        if step < warmup:
            return 0.01 + 0.99 * step / warmup
        done = min(max(step - warmup - hold, 0) / decay, 1.0)
        return float(_FINAL_SCALE**done)

    return factor


class _FrozenBeginning(TrainerCallback):
    """Trains the head alone at first. It depends on the step alone, so that a resumed run does as an unbroken one."""

    def __init__(self, model: nn.Module, ratio: float) -> None:
        self.ratio = ratio
        self.later = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and _HEAD not in name.split(".")
        ]

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        frozen = state.global_step < round(self.ratio * state.max_steps)
        for parameter in self.later:
            parameter.requires_grad_(not frozen)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        for parameter in self.later:
            parameter.requires_grad_(True)
