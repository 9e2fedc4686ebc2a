"""transformers' ``Trainer`` for CTC: masks, tri-stage schedule, frozen beginning, error rates on the valid part."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from rich.console import Console
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
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
from transformers.trainer_callback import PrinterCallback

from mambavox.asr.decoding import greedy_search
from mambavox.asr.metrics import score_transcripts
from mambavox.asr.tokenizer import Vocabulary
from mambavox.errors import ConfigError
from mambavox.training.devices import take_one_gpu
from mambavox.training.modes import set_training_mode
from mambavox.training.rank_allocation import RankAllocation
from mambavox.training.recognition.config import RecognitionConfig
from mambavox.training.recognition.data import SpeechCollator, SpeechDataset
from mambavox.training.trainer import AdaptTrainer, Divergence, TrainingClock, _ProgressBar

_FINAL_SCALE = 0.05
_HEAD = "lm_head"
_IGNORED = -100


class RecognitionTrainer(AdaptTrainer):
    """Trains a CTC model; keeps the epoch with the fewest word errors on the valid part, among equals fewer characters.

    Args:
        model: a CTC model, or a PEFT model around one.
        config: the run's configuration.
        learning_rate: peak.
        vocabulary: of the model.
        extractor: of the model.
        train: the training part.
        valid: the part that chooses the best epoch; empty: the last epoch is kept.
        checkpoints: folder of the checkpoints.
        tensorboard: folder of TensorBoard logs, or ``None``.
        console: where progress goes, or ``None``.

    Raises:
        ConfigError: the device that was asked for is not there, or early stopping has nothing to watch.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RecognitionConfig,
        *,
        learning_rate: float,
        vocabulary: Vocabulary,
        extractor: Any,
        train: SpeechDataset,
        valid: SpeechDataset,
        checkpoints: Path,
        tensorboard: Path | None,
        console: Console | None,
    ) -> None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device=cuda, but torch sees no GPU here; leave it at auto, or install a CUDA build")
        if config.patience is not None and not len(valid):
            raise ConfigError(f"patience={config.patience}, but there is no valid part to watch; set valid_fraction")
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        self.recognition = config
        self.vocabulary = vocabulary
        self.references = valid.part.texts
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        arguments = TrainingArguments(
            # Absolute, because the path of the best checkpoint is kept over a resumption from elsewhere.
            output_dir=str(checkpoints.absolute()),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            # Without a mask, padding would change what a recording's neighbours in the batch are heard as.
            per_device_eval_batch_size=config.batch_size if extractor.return_attention_mask else 1,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            eval_strategy="epoch" if len(valid) else "no",
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
        # Past AdaptTrainer's own beginning, which is a classifier's; its optimiser, order and checkpoints are wanted.
        Trainer.__init__(
            self,
            model=model,
            args=arguments,
            data_collator=SpeechCollator(base, extractor, config),
            train_dataset=train,
            eval_dataset=valid if len(valid) else None,
            compute_metrics=self._figures,
        )
        self.length_buckets = True
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(TrainingClock())
        self.add_callback(Divergence())
        if config.frozen_ratio:
            self.add_callback(_FrozenBeginning(model, config.frozen_ratio))
        self.rank_allocation = RankAllocation.of(model)
        if self.rank_allocation is not None:
            self.add_callback(self.rank_allocation)
        if config.patience is not None:
            self.add_callback(EarlyStoppingCallback(config.patience))
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter  # a second of imports that a run without it saves

            self.add_callback(TensorBoardCallback(SummaryWriter(str(tensorboard))))
        if console is not None:
            self.add_callback(_RecognitionBar(console, config.epochs))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Rise, hold, exponential decay to 5 % of the peak."""
        schedule = tri_stage(num_training_steps, self.recognition.warmup_ratio, self.recognition.hold_ratio)
        scheduler = LambdaLR(optimizer or self.create_optimizer(), schedule)
        self.lr_scheduler = scheduler
        return scheduler

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The CTC loss of one batch; in training with hidden spans of frames and channels."""
        training = model.training
        own = self.accelerator.unwrap_model(model)
        hearing = {name: value for name, value in inputs.items() if name in ("input_values", "attention_mask")}
        if training:
            set_training_mode(own)
        masks = (inputs["time_mask"], inputs["channel_mask"]) if training else None
        with hidden_spans(own, masks):
            logits = model(**hearing).logits
        loss = ctc_loss(logits, inputs["frames"], inputs["labels"], self.vocabulary.blank)
        if self.rank_allocation is None or not training:
            return loss
        return loss + self.rank_allocation.penalty()

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
        """Error rates, and the rank by which the best epoch is chosen: word errors, then characters."""
        texts = [self.vocabulary.text(collapse(row, self.vocabulary.blank)) for row in prediction.predictions]
        scores = score_transcripts(self.references, texts, language=self.recognition.language)
        # The second term is below 1, whatever the rate: less than a word.
        rank = -scores.wer.counts.errors - scores.cer.rate / (1 + scores.cer.rate)
        return {**scores.rates, "rank": rank}


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
def hidden_spans(model: Any, masks: tuple[Tensor, Tensor] | None) -> Iterator[None]:
    """Let a model's encoder miss spans of frames, replaced by its mask embedding, and channels, replaced by zeros.

    Args:
        model: a CTC model or a PEFT model around one.
        masks: ``(batch, time)`` and ``(batch, channels)`` boolean, true where hidden; ``None`` hides nothing.

    Source:
        SpecAugment (arXiv 1904.08779) on the projected features, as wav2vec 2.0 (arXiv 2006.11477) does it.
    """
    if masks is None:
        yield
        return
    base = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
    time_mask, channel_mask = masks

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


class _RecognitionBar(_ProgressBar):
    """Tells error rates in place of accuracy."""

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        figures = kwargs["metrics"]
        self._tell(state, f"  valid WER {100 * figures['eval_wer']:.2f} %  CER {100 * figures['eval_cer']:.2f} %")


def learning_curve(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """One row an epoch of ``Trainer``'s log."""
    names = {"loss": "train_loss", "eval_loss": "valid_loss", "eval_wer": "valid_wer", "eval_cer": "valid_cer"}
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        row = rows.setdefault(round(entry["epoch"]), {})
        row.update({name: entry[key] for key, name in names.items() if key in entry})
    return [{"epoch": epoch, **row} for epoch, row in sorted(rows.items())]
