"""Adapt a pre-trained audio model to a classification task: one run, from recordings to a run folder."""

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import set_seed

from mambavox.adapters import METHODS, apply_method, trainable_parameters
from mambavox.data import (
    CORPORA,
    AudioProblem,
    Corpus,
    Example,
    Splits,
    check_audio,
    duration,
    find_corpus,
    make_splits,
    read_examples,
    split_by_protocol,
    take_shots,
)
from mambavox.errors import ConfigError, DataError
from mambavox.files import to_json
from mambavox.training.backbone import Backbone, backbone_limit, load_backbone, quiet_transformers
from mambavox.training.config import AdaptConfig
from mambavox.training.features import FeatureDataset
from mambavox.training.frozen_front import FrozenFront
from mambavox.training.model_card import model_card
from mambavox.training.predictions import Outcome, write_predictions
from mambavox.training.result import AdaptResult
from mambavox.training.run_folder import LABELS_FILE, METRICS_FILE, PREDICTIONS_FILE, RunFolder
from mambavox.training.scores import predict_logits, score
from mambavox.training.trainer import AdaptTrainer, save_trained

_FITTING = 0.98
LIBRARIES = ("mambavox", "torch", "transformers", "peft", "numpy")
"""Libraries whose versions a run writes down."""


def adapt(
    config: AdaptConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    console: Console | None = None,
) -> AdaptResult:
    """Adapt a backbone to a data set and write the run folder ``config.output_path``.

    The folder holds the adapter and its head in PEFT's format (after full fine-tuning: the model), the feature
    extractor's configuration, ``labels.json``, ``run.yaml``, ``metrics.json``, ``predictions.csv`` (the class of each
    recording of the valid and test parts), a model card and TensorBoard logs.
    Whatever is final is written at once, ``metrics.json`` last. Checkpoints of every epoch lie in ``checkpoints/``
    until the run has ended well.

    Args:
        config: what to do.
        resume: continue the folder's unfinished run, on a CPU to exactly the figures of an unbroken one; a finished
            run's result is returned as it is.
        overwrite: replace the folder's run.
        keep_checkpoints: leave ``checkpoints/`` in the folder.
        console: where progress goes; ``None`` is silent.

    Raises:
        ConfigError: a value does not fit the method, the backbone or this machine.
        DataError: there is no data, or a column, label or part is not what is needed.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
        HostError: the backbone is of no known family.
        RunError: the folder holds something else, the run diverged, or the disk is full.
    """
    folder = RunFolder(config.output_path)
    folder.check(config, resume=resume, overwrite=overwrite)
    if resume and folder.is_finished:
        return AdaptResult.load(folder.path)
    splits, skipped = load_splits(config, console)
    labels = natural_order({str(example.label) for example in splits.train})
    if len(labels) < 2:
        raise DataError(f"{config.data}: the only class is {labels[0]!r}; expected two or more: --label-column")

    set_seed(config.seed)
    max_seconds = config.max_seconds or fitting_seconds(splits.train, backbone_limit(config.backbone))
    backbone = load_backbone(
        config.backbone,
        labels,
        max_seconds,
        pooling=config.pooling,
        position_embeddings=config.position_embeddings,
    )
    if config.spec_augment and not backbone.front_end.is_spectrogram:
        raise ConfigError(
            f"spec_augment masks spectrograms, but {config.backbone} hears waveforms; leave it out (--no-spec-augment)"
        )
    if config.length_buckets and not backbone.front_end.pads_to_longest:
        raise ConfigError(
            f"length_buckets saves padding, but {config.backbone} hears every clip at one length; leave it out "
            "(--no-length-buckets)"
        )
    with quiet_transformers():
        model = apply_method(backbone.model, config.method, config.method_options)
    front = _frozen_front(model, config)
    parameters = trainable_parameters(model)
    learning_rate = config.learning_rate or METHODS[config.method].learning_rate
    parts = {
        name: FeatureDataset(
            examples,
            labels,
            backbone.front_end,
            spec_augment=config.spec_augment and name == "train",
            seed=config.seed,
        )
        for name, examples in (("train", splits.train), ("valid", splits.valid), ("test", splits.test))
    }
    folder.begin(config, resume=resume)
    with folder.watching_the_disk(), quiet_transformers():
        trainer = AdaptTrainer(
            model,
            config,
            learning_rate=learning_rate,
            train=parts["train"],
            valid=parts["test" if splits.selects_on_test else "valid"],
            checkpoints=folder.checkpoints,
            tensorboard=folder.tensorboard if config.tensorboard else None,
            console=console,
        )
        if front is not None:
            trainer.cache_front(front, folder.path)
        checkpoint = folder.last_checkpoint() if resume else None
        if checkpoint is None or not trainer.finish_stopped(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        held_back = {name: part for name, part in parts.items() if name != "train" and len(part)}
        predicted = {
            name: predict_logits(model, part, config.batch_size).argmax(axis=1) for name, part in held_back.items()
        }
        scores = {name: score(part.targets or [], predicted[name]) for name, part in held_back.items()}
        result = AdaptResult(
            method=config.method,
            backbone=config.backbone,
            scores=scores,
            learning_curve=learning_curve(trainer.state.log_history),
            best_epoch=_best_epoch(trainer),
            parameters=parameters,
            seconds=trainer.seconds,
            learning_rate=learning_rate,
            max_seconds=backbone.front_end.max_seconds,
            clips={name: len(part) for name, part in parts.items()},
            cut=sum(
                duration(example.source) > backbone.front_end.max_seconds
                for part in parts.values()
                for example in part.examples
            ),
            skipped=[{"name": problem.name, "reason": problem.reason} for problem in skipped],
            notes=splits.notes,
            device=device_name(trainer.args.device),
            versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
            selects_on_test=splits.selects_on_test,
        )
        outcomes = [
            Outcome(name, example.name, str(example.label), backbone.labels[index])
            for name, part in held_back.items()
            for example, index in zip(part.examples, predicted[name], strict=True)
        ]
        folder.publish(lambda path: _write_run(path, folder, config, model, backbone, result, outcomes))
    if not keep_checkpoints:
        folder.remove_checkpoints()
    return result


def _frozen_front(model: nn.Module, config: AdaptConfig) -> FrozenFront | None:
    """The front that is to be run once, if one is asked for."""
    if not config.cache_features:
        return None
    if config.spec_augment:
        raise ConfigError(
            "cache_features: spec_augment masks every clip anew each epoch, so that nothing can be kept; leave out one "
            "of them (--no-cache-features, --no-spec-augment)"
        )
    return FrozenFront(model)


def load_examples(config: AdaptConfig, console: Console | None = None) -> tuple[list[Example], list[AudioProblem]]:
    """Read and check a run's recordings.

    Args:
        config: what to read.
        console: where progress goes.

    Returns:
        The usable recordings, and those that were left out.

    Raises:
        ConfigError: no data are given.
        DataError: there are no recordings, or they have no labels.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
    """
    if config.data is None:
        raise ConfigError("no data given; expected a manifest, a folder or hf:owner/name: --data PATH")
    examples = read_examples(config.data, label_column=config.label_column, audio_column=config.audio_column)
    if any(example.label is None for example in examples):
        raise DataError(f"{config.data}: column {config.label_column!r} is empty; name the classes with --label-column")
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task("checking recordings", total=len(examples))
        return check_audio(
            examples,
            min_seconds=config.min_seconds,
            on_error=config.on_error,
            progress=lambda done, total: bar.update(task, completed=done),
        )


def load_splits(config: AdaptConfig, console: Console | None = None) -> tuple[Splits, list[AudioProblem]]:
    """Read and check a run's recordings and divide them.

    Args:
        config: what to read, and how to divide it.
        console: where progress goes.

    Returns:
        The parts, and the recordings that were left out.

    Raises:
        ConfigError: no data are given, or a protocol for data that have none.
        DataError: there are no recordings or labels, or a part is not what is needed.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
    """
    corpus = _corpus(config)
    usable, problems = load_examples(config, console)
    if corpus is None:
        splits = make_splits(
            usable,
            split_column=config.split_column,
            fold_column=config.fold_column,
            test_fold=config.test_fold,
            valid_fold=config.valid_fold,
            group_column=config.group_column,
            valid_fraction=config.valid_fraction,
            test_fraction=config.test_fraction,
            seed=config.split_seed,
        )
    else:
        splits = split_by_protocol(usable, corpus.protocol(config.protocol), config.fold)
        miscount = corpus.miscount(len(usable) + len(problems))
        splits.notes.extend([miscount] if miscount else [])
    if config.shots is not None:
        splits = take_shots(splits, config.shots, config.split_seed)
    return splits, problems


def _corpus(config: AdaptConfig) -> Corpus | None:
    """The corpus whose protocol a run follows, if any; asked before hours of recordings are checked.

    Raises:
        ConfigError: a protocol or fold is asked for, but the data are no corpus.
        DataError: the corpus has no such protocol or fold.
    """
    found = None if config.divided_by else find_corpus(config.data)
    if found is not None:
        found[0].protocol(config.protocol).fold(config.fold)
        return found[0]
    if config.asked_of_a_corpus and config.data is not None:
        raise ConfigError(
            f"{config.asked_of_a_corpus} is asked of a corpus, and {config.data} has the layout of none "
            f"({', '.join(CORPORA)}); name the fold of other data with --test-fold"
        )
    return None


def fitting_seconds(examples: Sequence[Example], limit: float) -> float:
    """Length, in seconds, into which 98 % of some recordings fit, but no more than the limit.

    One endless recording would otherwise decide the cost of every batch.
    """
    seconds = [duration(example.source) for example in examples]
    return min(float(np.quantile(seconds, _FITTING, method="higher")), limit)


def natural_order(labels: set[str]) -> list[str]:
    """Labels in alphabetical order, but with numbers by value: 2 before 10."""

    def parts(label: str) -> list[str]:
        return [part.zfill(20) if part.isdigit() else part for part in re.split(r"(\d+)", label)]

    return sorted(labels, key=parts)


def learning_curve(
    history: Sequence[Mapping[str, float]],
    scores: Mapping[str, str] = MappingProxyType({"eval_accuracy": "valid_accuracy"}),
) -> list[dict[str, float]]:
    """One row an epoch of ``Trainer``'s log; ``scores`` are the figures of the valid part, and what they are called."""
    names = {"loss": "train_loss", "eval_loss": "valid_loss", **scores}
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        row = rows.setdefault(round(entry["epoch"]), {})
        row.update({name: entry[key] for key, name in names.items() if key in entry})
    return [{"epoch": epoch, **row} for epoch, row in sorted(rows.items())]


def _best_epoch(trainer: AdaptTrainer) -> int:
    state = trainer.state
    steps_an_epoch = state.max_steps / trainer.args.num_train_epochs
    return round((state.best_global_step or state.global_step) / steps_an_epoch)


def device_name(device: torch.device) -> str:
    """A device in words: the GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


def _write_run(
    path: Path,
    folder: RunFolder,
    config: AdaptConfig,
    model: Any,
    backbone: Backbone,
    result: AdaptResult,
    outcomes: Sequence[Outcome],
) -> None:
    if isinstance(model, PeftModel):
        for adapter in model.peft_config.values():
            # Where the backbone lies on this machine says nothing on another one.
            adapter.base_model_name_or_path = config.backbone
    save_trained(model, path)
    backbone.front_end.extractor.save_pretrained(path)
    (path / LABELS_FILE).write_text(to_json(backbone.labels), encoding="utf-8")
    name = Path(config.data or "").name
    card = model_card(result, list(backbone.labels), folder.path.as_posix(), name, config.pooling)
    (path / "README.md").write_text(card, encoding="utf-8")
    write_predictions(path / PREDICTIONS_FILE, outcomes)
    (path / METRICS_FILE).write_text(to_json(result.to_mapping()), encoding="utf-8")
