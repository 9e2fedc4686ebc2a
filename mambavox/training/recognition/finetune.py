"""Train a CTC recogniser: one run, from recordings with transcripts to a run folder."""

import csv
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from torch import nn
from transformers import set_seed

from mambavox.adapters import METHODS, apply_method, trainable_parameters
from mambavox.asr.decoding import greedy_search
from mambavox.asr.metrics import TranscriptScores, score_transcripts
from mambavox.asr.model import ctc_log_probs, load_ctc_model, load_extractor, num_frames
from mambavox.asr.tokenizer import Vocabulary, encode, frames_needed, train_tokenizer
from mambavox.errors import ConfigError, DataError, RunError
from mambavox.files import to_json
from mambavox.training.backbone import quiet_transformers
from mambavox.training.recognition.config import RecognitionConfig
from mambavox.training.recognition.data import SpeechDataset
from mambavox.training.recognition.parts import SpeechPart, load_parts
from mambavox.training.recognition.trainer import RecognitionTrainer, learning_curve
from mambavox.training.run_config import RUN_FILE
from mambavox.training.run_folder import METRICS_FILE, RunFolder
from mambavox.training.trainer import save_trained

TRANSCRIPTS_FILE = "transcripts.csv"
"""What was said and heard in each recording that was held back."""
TASK = "ctc"
_LIBRARIES = ("mambavox", "torch", "transformers", "peft", "numpy", "tokenizers")
_FULL_RATE = 5e-5


@dataclass(frozen=True)
class RecognitionResult:
    """What a run gave; ``metrics.json`` holds the same, but for the transcripts.

    Attributes:
        figures: for JSON: error rates by part, learning curve, parameters, what was left out, and the rest.
        scores: of each part, with its utterances; empty where the result was read from a folder.
    """

    figures: Mapping[str, Any]
    scores: Mapping[str, TranscriptScores]

    @classmethod
    def load(cls, run: str | Path) -> "RecognitionResult":
        """Read the result of a finished run.

        Raises:
            RunError: it holds none.
        """
        path = Path(run) / METRICS_FILE
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(
                f"{run}: holds no finished run; expected a folder that `mambavox finetune` wrote, or end the run with "
                f"`mambavox finetune --output {run} --resume`"
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({error}); expected what `mambavox finetune` writes") from error
        if figures.get("task") != TASK:
            raise RunError(f"{run}: is no run of `mambavox finetune`")
        return cls(figures, {})


def finetune(
    config: RecognitionConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    console: Console | None = None,
) -> RecognitionResult:
    """Train a CTC model on a data set and write the run folder ``config.output_path``.

    The folder holds the model (or the adapter and its head in PEFT's format), the tokenizer, the feature extractor's
    configuration, ``run.yaml``, ``metrics.json`` (written last), ``transcripts.csv``, a model card and
    TensorBoard logs.

    Args:
        config: what to do.
        resume: continue the folder's unfinished run, on a CPU to exactly the figures of an unbroken one; a finished
            run's result is returned as it is.
        overwrite: replace the folder's run.
        keep_checkpoints: leave ``checkpoints/`` in the folder.
        console: where progress goes; ``None`` is silent.

    Raises:
        ConfigError: a value does not fit the method, the model or this machine.
        DataError: there is no data, or a column, transcript or part is not what is needed.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
        RunError: the folder holds something else, the run diverged, or the disk is full.
    """
    if config.model is None:
        raise ConfigError("no model given; expected a pre-trained Mamba-HuBERT, wav2vec2, HuBERT or WavLM: --model")
    folder = RunFolder(config.output_path)
    folder.check(config, resume=resume, overwrite=overwrite)
    if resume and folder.is_finished:
        return RecognitionResult.load(folder.path)
    parts = load_parts(config, console)
    tokenizer = train_tokenizer(parts.train.texts, config.vocabulary, config.vocabulary_size)
    vocabulary = Vocabulary.of(tokenizer)

    set_seed(config.seed)
    with quiet_transformers():
        host = load_ctc_model(config.model, len(vocabulary.tokens), vocabulary.blank)
        extractor = load_extractor(config.model)
        model = _prepare(host, config)
    learning_rate = config.learning_rate or (
        _FULL_RATE if config.method == "full" else METHODS[config.method].learning_rate
    )
    rate = int(extractor.sampling_rate)
    train, infeasible = _feasible(parts.train, tokenizer, host, rate)
    if not len(train):
        raise DataError(f"{config.data}: no training transcript fits into the frames of its recording")
    datasets = {
        name: SpeechDataset(part, [encode(tokenizer, text) for text in part.texts], rate)
        for name, part in {"train": train, "valid": parts.valid, **parts.tests}.items()
    }
    unknown = _unknown(datasets, vocabulary)
    parameters = trainable_parameters(model)
    folder.begin(config, resume=resume)
    with folder.watching_the_disk(), quiet_transformers():
        trainer = RecognitionTrainer(
            model,
            config,
            learning_rate=learning_rate,
            vocabulary=vocabulary,
            extractor=extractor,
            train=datasets["train"],
            valid=datasets["valid"],
            checkpoints=folder.checkpoints,
            tensorboard=folder.tensorboard if config.tensorboard else None,
            console=console,
        )
        checkpoint = folder.last_checkpoint() if resume else None
        if checkpoint is None or not trainer.finish_stopped(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        model.eval()
        scores = {
            name: _score(dataset, model, extractor, vocabulary, config)
            for name, dataset in datasets.items()
            if name != "train" and len(dataset)
        }
        state = trainer.state
        figures = {
            "task": TASK,
            "model": config.model,
            "method": config.method,
            "language": config.language,
            "scores": {name: score.to_mapping() for name, score in scores.items()},
            "learning_curve": learning_curve(state.log_history),
            "best_epoch": round(
                (state.best_global_step or state.global_step) * config.epochs / max(state.max_steps, 1)
            ),
            "parameters": parameters,
            "vocabulary": len(vocabulary.tokens),
            "seconds": trainer.seconds,
            "learning_rate": learning_rate,
            "recordings": {name: len(dataset) for name, dataset in datasets.items()},
            "hours": {name: round(sum(dataset.lengths) / 3600, 4) for name, dataset in datasets.items()},
            "left_out": [*parts.left_out, *infeasible],
            "unknown_characters": unknown,
            "notes": parts.notes,
            "device": str(trainer.args.device.type),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        }
        result = RecognitionResult(figures, scores)
        folder.publish(lambda path: _write(path, folder.path, config, model, tokenizer, extractor, result))
    if not keep_checkpoints:
        folder.remove_checkpoints()
    return result


def _prepare(host: Any, config: RecognitionConfig) -> nn.Module:
    """Make a model ready to be trained with the method."""
    if config.method == "full":
        host.requires_grad_(True)
        if not config.train_front:
            host.freeze_feature_encoder()
        return host
    return apply_method(host, config.method, config.method_options)


def _feasible(part: SpeechPart, tokenizer: Any, host: Any, rate: int) -> tuple[SpeechPart, list[dict[str, str]]]:
    """Recordings with a frame for each token, and those without, by name."""
    kept, left_out = [], []
    for row, (example, text, seconds) in enumerate(zip(part.examples, part.texts, part.seconds, strict=True)):
        needed, there = frames_needed(encode(tokenizer, text)), num_frames(host, round(seconds * rate))
        if needed > there:
            reason = f"its transcript needs {needed} frames and it has {there}: CTC cannot learn it"
            left_out.append({"name": example.name, "part": "train", "reason": reason})
        else:
            kept.append(row)
    return part.take(kept), left_out


def _unknown(datasets: Mapping[str, SpeechDataset], vocabulary: Vocabulary) -> dict[str, int]:
    """Tokens of each held-back part that the vocabulary, made of the training part, lacks."""
    return {
        name: sum(token == vocabulary.unknown for ids in dataset.ids for token in ids)
        for name, dataset in datasets.items()
        if name != "train"
    }


def _score(
    dataset: SpeechDataset, model: Any, extractor: Any, vocabulary: Vocabulary, config: RecognitionConfig
) -> TranscriptScores:
    texts: list[str] = []
    for start in range(0, len(dataset), 64):  # waveforms of so many recordings in memory at a time
        rows = range(start, min(start + 64, len(dataset)))
        found = ctc_log_probs(model, extractor, [dataset.waveform(row) for row in rows], config.batch_size)
        texts += [vocabulary.text(greedy_search(log_probs, vocabulary.blank)) for log_probs in found]
    names = [example.name for example in dataset.part.examples]
    return score_transcripts(dataset.part.texts, texts, names=names, language=config.language)


def write_transcripts(path: Path, scores: Mapping[str, TranscriptScores]) -> None:
    """Write what was said and heard as CSV, a line a recording."""
    rows = [
        {"part": part, **utterance.to_mapping()} for part, score in scores.items() for utterance in score.utterances
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["part"])
        writer.writeheader()
        writer.writerows(rows)


def _write(
    path: Path,
    run: Path,
    config: RecognitionConfig,
    model: Any,
    tokenizer: Any,
    extractor: Any,
    result: RecognitionResult,
) -> None:
    if isinstance(model, PeftModel):
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = config.model
    save_trained(model, path)
    tokenizer.save_pretrained(path)
    extractor.save_pretrained(path)
    write_transcripts(path / TRANSCRIPTS_FILE, result.scores)
    (path / "README.md").write_text(_card(run.as_posix(), config, result), encoding="utf-8")
    (path / METRICS_FILE).write_text(to_json(result.figures), encoding="utf-8")


_CARD = """---
library_name: {library}
base_model: {model}
pipeline_tag: automatic-speech-recognition
tags:
- mambavox
- ctc
---

# {model}, trained to transcribe {name}

    mambavox transcribe recording.wav --model {path}

{loading}

## Scores

| part | recordings | WER [95 % interval] | CER [95 % interval] |
|---|---|---|---|
{rows}

{notes}

Method {method}, {total:,} trained parameters, best epoch {best} of {epochs}, learning rate {rate:g}, {seconds:.0f} s on
{device}. Decoding is greedy. Transcripts are {form}. `{run_file}` holds the configuration, `metrics.json` every figure,
`{transcripts}` what was said and heard.
"""


def _card(path: str, config: RecognitionConfig, result: RecognitionResult) -> str:
    whole = config.method == "full"
    figures = result.figures
    loading = (
        f'`AutoModelForCTC.from_pretrained("{path}")` and `AutoTokenizer` load it (after `import mambavox.hubert`).'
        if whole
        else f'`mambavox.asr.recognizer.SpeechRecognizer.from_pretrained("{path}")` loads both onto the model.'
    )
    rows = [f"| {part} | {len(item.utterances)} | {item.wer} | {item.cer} |" for part, item in result.scores.items()]
    left_out = len(figures["left_out"])
    notes = [
        *figures["notes"],
        *([f"{left_out} recordings were left out; metrics.json says which"] if left_out else []),
    ]
    return _CARD.format(
        library="transformers" if whole else "peft",
        model=config.model,
        name=Path(config.data or "").name,
        path=path,
        loading=loading,
        rows="\n".join(rows) or "| none |  |  |  |",
        notes="\n".join(f"- {note}" for note in notes),
        method=config.method,
        total=figures["parameters"]["total"],
        best=figures["best_epoch"],
        epochs=config.epochs,
        rate=figures["learning_rate"],
        seconds=figures["seconds"],
        device=figures["device"],
        form=f"normalised (language: {config.language or 'none given'})" if config.normalize else "as they are",
        run_file=RUN_FILE,
        transcripts=TRANSCRIPTS_FILE,
    )
