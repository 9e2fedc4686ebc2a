"""Adapt a Whisper to a language: one run, from transcribed recordings to a run folder."""

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from rich.console import Console
from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperProcessor, set_seed

from mambavox import assets
from mambavox.adapters import apply_method, trainable_parameters
from mambavox.asr.metrics import TranscriptScores, Utterance, score_transcripts
from mambavox.asr.text import normalize_text
from mambavox.asr.whisper_language import (
    add_language,
    generation_options,
    known_languages,
    language_token,
    prefix_ids,
)
from mambavox.asr.whisper_window import TrimmedEncoder
from mambavox.data import duration
from mambavox.errors import ConfigError, HostError
from mambavox.files import to_json
from mambavox.training.adapt import LIBRARIES, device_name, learning_curve
from mambavox.training.backbone import fetching, quiet_transformers
from mambavox.training.front_end import FrontEnd, longest_seconds
from mambavox.training.run_folder import METRICS_FILE, PREDICTIONS_FILE, RunFolder
from mambavox.training.seq2seq.config import Seq2SeqConfig
from mambavox.training.seq2seq.result import Seq2SeqResult, model_card, write_transcripts
from mambavox.training.seq2seq.trainer import TranscriptTrainer
from mambavox.training.seq2seq.transcripts import (
    IGNORED,
    TranscriptDataset,
    as_written,
    load_transcripts,
    text_column,
    texts_of,
)
from mambavox.training.trainer import save_trained


def adapt_whisper(
    config: Seq2SeqConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    console: Console | None = None,
) -> Seq2SeqResult:
    """Adapt a Whisper to transcribed recordings and write the run folder ``config.output_path``.

    The folder holds the adapter with its language's row in PEFT's format (after full fine-tuning: the model), the
    processor with the language's token, ``run.yaml``, ``metrics.json``, ``predictions.csv`` (what was said and heard in
    the valid and test parts), a model card and TensorBoard logs. Whatever is final is written at once, ``metrics.json``
    last. Checkpoints of the best and the last epoch lie in ``checkpoints/`` until the run has ended well.

    Args:
        config: what to do.
        resume: continue the folder's unfinished run; a finished run's result is returned as it is.
        overwrite: replace the folder's run.
        keep_checkpoints: leave ``checkpoints/`` in the folder.
        console: where progress goes; ``None`` is silent.

    Raises:
        ConfigError: a value does not fit the method, the backbone or this machine, or a multilingual backbone is given
            no language.
        DataError: there is no data, or a column, transcript or part is not what is needed.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
        HostError: the backbone is no Whisper, or one of a single language and another is asked for.
        RunError: the folder holds something else, the run diverged, or the disk is full.
    """
    folder = RunFolder(config.output_path)
    # Of several processes (torchrun) the first alone writes; accelerate reads their number from the environment.
    processes = PartialState(cpu=config.device == "cpu" or not torch.cuda.is_available())
    first = processes.is_main_process
    console = console if first else None
    if first:
        folder.check(config, resume=resume, overwrite=overwrite)
    processes.wait_for_everyone()
    if resume and folder.is_finished:
        return Seq2SeqResult.load(folder.path)
    set_seed(config.seed)
    model, processor = load_whisper(config.backbone)
    longest = longest_seconds(processor.feature_extractor, model.config)
    splits, skipped, left_out = load_transcripts(config, longest)
    tokenizer = processor.tokenizer
    with quiet_transformers():
        new = None
        if config.language is not None:
            new = add_language(model, tokenizer, config.language, config.language_like)
        elif known_languages(model):
            raise ConfigError(
                f"no language is given, and {config.backbone} knows {len(known_languages(model))}; "
                "expected the code of the one that is spoken: --language"
            )
        prefix = prefix_ids(model, config.language)
        adapted = apply_method(model, config.method, config.method_options, token_rows=[] if new is None else [new])
    if config.trim_encoder:
        TrimmedEncoder(model)
    front_end = FrontEnd(processor.feature_extractor, model.config, longest)
    parts, said = {}, {}
    for name, examples in (("train", splits.train), ("valid", splits.valid), ("test", splits.test)):
        column = text_column([*splits.train, *examples], config.text_column, str(config.data))
        said[name] = texts_of(examples, column, config.language, normalize=True)
        parts[name] = TranscriptDataset(
            examples,
            as_written(
                said[name] if config.normalize else texts_of(examples, column, config.language, normalize=False),
                config.language,
            ),
            front_end,
            prefix=prefix,
            tokenizer=tokenizer,
            max_tokens=model.config.max_target_positions,
        )
    longest_said = max(len(tokens) for part in parts.values() for tokens in part.tokens)
    generation = {
        **generation_options(model, config.language),
        "max_new_tokens": min(
            config.max_new_tokens or math.ceil(1.5 * longest_said), model.config.max_target_positions - len(prefix)
        ),
        "num_beams": config.num_beams,
    }

    def scores(name: str, generated: Sequence[Sequence[int]]) -> TranscriptScores:
        # Seq2SeqTrainer fills rows up with -100 and, of several processes, the last batches with the first recordings.
        rows = [[i for i in row if i != IGNORED] for row in generated[: len(parts[name])]]
        heard = tokenizer.batch_decode(rows, skip_special_tokens=True)
        names = [example.name for example in parts[name].examples]
        heard = [normalize_text(text, config.language) for text in heard]
        return score_transcripts(said[name], heard, names=names, language=config.language)

    if first:
        folder.begin(config, resume=resume)
    processes.wait_for_everyone()
    with folder.watching_the_disk(), quiet_transformers():
        trainer = TranscriptTrainer(
            adapted,
            config,
            train=parts["train"],
            valid=parts["valid"],
            generation=generation,
            error_rates=lambda generated: scores("valid", generated).rates,
            checkpoints=folder.checkpoints,
            tensorboard=folder.tensorboard if config.tensorboard and first else None,
            console=console,
        )
        checkpoint = folder.last_checkpoint() if resume else None
        if checkpoint is None or not trainer.finish_stopped(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        scored = {name: scores(name, trainer.transcribe(parts[name])) for name in ("valid", "test") if len(parts[name])}
        state = trainer.state
        result = Seq2SeqResult(
            task=config.task,
            method=config.method,
            backbone=config.backbone,
            language=config.language,
            new_token=None if new is None or config.language is None else language_token(config.language),
            scores={name: part.to_mapping() for name, part in scored.items()},
            learning_curve=learning_curve(state.log_history, {"eval_wer": "valid_wer", "eval_cer": "valid_cer"}),
            best_epoch=round((state.best_global_step or state.global_step) / (state.max_steps / config.epochs)),
            parameters=trainable_parameters(adapted),
            seconds=trainer.seconds,
            learning_rate=config.peak_learning_rate,
            max_new_tokens=generation["max_new_tokens"],
            num_beams=config.num_beams,
            clips={name: len(part) for name, part in parts.items()},
            hours={name: sum(duration(item.source) for item in part.examples) / 3600 for name, part in parts.items()},
            left_out=left_out,
            skipped=[{"name": problem.name, "reason": problem.reason} for problem in skipped],
            notes=splits.notes,
            device=device_name(trainer.args.device),
            versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        )
        heard = {name: part.utterances for name, part in scored.items()}
        if first:
            folder.publish(lambda path: _write_run(path, folder, config, adapted, processor, result, heard))
    if first and not keep_checkpoints:
        folder.remove_checkpoints()
    processes.wait_for_everyone()
    return result


def load_whisper(name: str) -> tuple[Any, Any]:
    """A Whisper in float32, and its processor.

    Args:
        name: an embedded model, a folder, or a Hugging Face name.

    Raises:
        ConfigError: there is no such model, or it cannot be fetched.
        HostError: it is no Whisper.
    """
    with fetching(name), quiet_transformers():
        kind = AutoConfig.from_pretrained(assets.locate(name)).model_type
        if kind != "whisper":
            raise HostError(f"backbone {name!r} is of type {kind!r}; expected a Whisper, such as openai/whisper-small")
        processor = WhisperProcessor.from_pretrained(assets.locate(name))
        model = WhisperForConditionalGeneration.from_pretrained(assets.locate(name), dtype=torch.float32)
    # Masking of the host's own would act in full fine-tuning only.
    model.config.apply_spec_augment = False
    return model, processor


def is_whisper(name: str) -> bool:
    """Whether a name is that of a Whisper: an embedded model, a folder, or on the Hub."""
    try:
        return bool(AutoConfig.from_pretrained(assets.locate(name)).model_type == "whisper")
    except (OSError, ValueError):
        return False


def _write_run(
    path: Path,
    folder: RunFolder,
    config: Seq2SeqConfig,
    model: Any,
    processor: Any,
    result: Seq2SeqResult,
    heard: Mapping[str, Sequence[Utterance]],
) -> None:
    if isinstance(model, PeftModel):
        for adapter in model.peft_config.values():
            # Where the backbone lies on this machine says nothing on another one.
            adapter.base_model_name_or_path = config.backbone
        model.get_base_model().generation_config.save_pretrained(path)
    save_trained(model, path)
    processor.save_pretrained(path)
    name = Path(config.data or "").name
    (path / "README.md").write_text(model_card(result, folder.path.as_posix(), name), encoding="utf-8")
    write_transcripts(path / PREDICTIONS_FILE, heard)
    (path / METRICS_FILE).write_text(to_json(result.to_mapping()), encoding="utf-8")
