"""Pre-train a Mamba-HuBERT: from recordings to a model that transformers loads."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor, set_seed

from mambavox.data import SAMPLING_RATE, Example, ShardedExamples, duration, read_recordings
from mambavox.data.batching import BatchesBySeconds
from mambavox.errors import AudioError, ConfigError, DataError
from mambavox.files import to_json, write_atomically
from mambavox.hubert import MambaHubertConfig, MambaHubertForPreTraining
from mambavox.training.backbone import quiet_transformers
from mambavox.training.pretraining.config import MFCC, PretrainConfig
from mambavox.training.pretraining.curve import plot_curve
from mambavox.training.pretraining.dataset import CropDataset, WaveformCrops
from mambavox.training.pretraining.distillation import DistillationModel, DistillationTrainer
from mambavox.training.pretraining.model_card import model_card
from mambavox.training.pretraining.progress import read_history
from mambavox.training.pretraining.recordings import (
    Division,
    Recordings,
    hold_back,
    load_recordings,
    select_examples,
    sharded_recordings,
    without_test,
)
from mambavox.training.pretraining.result import PretrainResult
from mambavox.training.pretraining.teacher import Teacher
from mambavox.training.pretraining.trainer import PretrainTrainer, training_arguments
from mambavox.training.run_folder import CURVE_FILE, HISTORY_FILE, METRICS_FILE, RECORDINGS_FILE, RunFolder
from mambavox.units.features import Features, MfccFeatures, load_features
from mambavox.units.labels import UNIT_BYTES, UnitLabels, are_finished
from mambavox.units.targets import check_targets, make_targets

_LIBRARIES = ("mambavox", "torch", "transformers", "accelerate", "numpy")
_GIGABYTE = 1e9
_LEAST_CACHE = 64 << 20  # bytes of targets


def pretrain(
    config: PretrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    console: Console | None = None,
) -> PretrainResult:
    """Pre-train a model on recordings and write the run folder ``config.output_path``.

    The folder holds the model (``AutoModel.from_pretrained`` loads it), its feature extractor's configuration,
    ``run.yaml``, ``metrics.json``, the figures along the way (``metrics.jsonl``, ``curve.png``, TensorBoard logs), a
    model card, and ``targets/``: the units and what made them. Whatever is final is written at once, ``metrics.json``
    last. Checkpoints lie in ``checkpoints/`` until the run has ended well. Under torchrun all processes call this.

    With a teacher the model predicts its layers in place of units, and is kept without the heads that do so.

    Args:
        config: what to do.
        resume: continue the folder's unfinished run, on a CPU to exactly the weights of an unbroken one; a finished
            run's result is returned as it is.
        overwrite: replace the folder's run.
        keep_checkpoints: leave ``checkpoints/`` in the folder.
        console: where progress goes; ``None`` is silent.

    Raises:
        ConfigError: a value does not fit the model or this machine.
        DataError: there are no usable recordings, or targets do not fit them.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``, or are too long for the targets' model.
        HostError: the teacher is no speech model of a known kind, or its checkpoint lacks weights.
        RunError: the folder holds something else, or the disk is full; the teacher is another than before.
        DivergedError: the run diverged.
    """
    folder = RunFolder(config.output_path)
    model_config = config.model_config()
    arguments = training_arguments(config, folder.checkpoints, console)
    first = arguments.process_index == 0
    console = console if first else None
    if first:
        folder.check(config, resume=resume, overwrite=overwrite)
    _wait()
    if resume and folder.is_finished:
        return PretrainResult.load(folder.path)

    _check_output(config)
    teacher = _teacher(config, model_config, arguments.device)
    examples = _examples(config)
    recordings = division = features = None
    if first:
        recordings = _recordings(config, model_config, examples, _ledger(folder) if resume else {}, console)
        division = _divide(config, recordings, console)
        # Whatever can be wrong with the targets is told before an earlier run is removed.
        if teacher is None and not (resume and are_finished(folder.targets)):
            features = _checked_features(config, recordings, division, arguments.device)
        with folder.watching_the_disk():
            folder.begin(config, resume=resume)
            write_atomically(folder.path / RECORDINGS_FILE, to_json(recordings.ledger))
    _wait()
    if recordings is None or division is None:
        recordings = _recordings(config, model_config, examples, _ledger(folder), None)
        division = _divide(config, recordings, None)
    with folder.watching_the_disk(), quiet_transformers():
        if first and teacher is not None:
            teacher.remember(folder.targets)
        elif first:
            _make_targets(config, recordings, division, folder, arguments.device, features, console)
            features = None
        _wait()
        parts = recordings.select(division.train), recordings.select(division.valid)
        # Held-back recordings are heard and masked the same way in every run, so that runs can be compared.
        seeds = (config.seed, 0), (config.split_seed, 1)
        train: CropDataset | WaveformCrops
        valid: CropDataset | WaveformCrops
        if teacher is None:
            labels = UnitLabels.load(folder.targets)
            if recordings.shards is not None:
                labels.cache_bytes = _bytes_of_windows(config, labels, len(np.unique(recordings.shards)))
            train, valid = (
                CropDataset(part, labels, model_config, seed) for part, seed in zip(parts, seeds, strict=True)
            )
        else:
            train, valid = (WaveformCrops(part, model_config, seed) for part, seed in zip(parts, seeds, strict=True))
        set_seed(config.seed)
        options: dict[str, Any] = {
            "train": train,
            "valid": valid if len(valid) else None,
            "history": folder.path / HISTORY_FILE,
            "tensorboard": folder.tensorboard if config.tensorboard else None,
            "console": console,
        }
        trainer: PretrainTrainer
        model: MambaHubertForPreTraining | DistillationModel
        if teacher is None:
            model = MambaHubertForPreTraining(model_config)
            trainer = PretrainTrainer(model, config, arguments, **options)
        else:
            model = DistillationModel(model_config, list(teacher.layers.values()), teacher.dim)
            if config.teacher_front_end:
                teacher.give_front_end(model.mamba_hubert)
            trainer = DistillationTrainer(model, teacher, config, arguments, **options)
        parameters = _parameters(model)  # before they are sharded
        if arguments.world_size > 1:
            torch.manual_seed(config.seed + arguments.process_index)  # each process its own dropout
        checkpoint = folder.last_checkpoint() if resume else None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        result = _result(config, trainer, recordings, train, valid, parameters)
        weights = trainer.weights()  # all processes take part: each may hold a part of them
        if first:
            folder.publish(lambda path: _write_run(path, folder, config, trainer, weights, result))
    _wait()
    if first and not keep_checkpoints:
        folder.remove_checkpoints()
    return result


def _teacher(config: PretrainConfig, model_config: MambaHubertConfig, device: torch.device) -> Teacher | None:
    return None if config.teacher is None else Teacher(config, model_config, device)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        parameters: of the encoder, and of the whole model.
        clips: recordings to train on.
        hours: of speech in them.
        held_back: hours of speech of the valid part.
        unreadable: recordings whose header cannot be read, which are left out.
        steps: updates.
        seconds_a_step: speech an update.
        batches_a_step: batches of one device an update.
        epochs: passes over the recordings.
        heard: share of each pass that is heard; crops leave out the rest.
        hours_heard: hours of speech that all updates hear.
        label_gigabytes: of the targets of both parts; a teacher's are not kept.
        learning_rate: peak.
    """

    parameters: dict[str, int]
    clips: int
    hours: float
    held_back: float
    unreadable: int
    steps: int
    seconds_a_step: float
    batches_a_step: int
    epochs: float
    heard: float
    hours_heard: float
    label_gigabytes: float
    learning_rate: float


def plan(config: PretrainConfig) -> Plan:
    """What a run would do, from the headers of its recordings; nothing is written.

    Args:
        config: the run.

    Raises:
        ConfigError, DataError, AudioError: as :func:`pretrain`.
    """
    model_config = config.model_config()
    teacher = _teacher(config, model_config, torch.device("cpu"))
    with torch.device("meta"):
        parameters = _parameters(
            MambaHubertForPreTraining(model_config)
            if teacher is None
            else DistillationModel(model_config, list(teacher.layers.values()), teacher.dim)
        )
    rate = model_config.sampling_rate
    examples, lengths, unreadable = _lengths(config, _examples(config))
    usable = np.flatnonzero(lengths >= _min_samples(config, model_config))
    if not len(usable):
        raise DataError(f"none of {len(lengths)} recordings can be used: all are too short or cannot be read")
    examples = select_examples(examples, usable)
    lengths = lengths[usable]
    division = hold_back(examples, config.valid_fraction, config.split_seed)
    train = lengths[division.train]
    batches = BatchesBySeconds(
        train,
        batch_samples=round(config.seconds_a_device * rate),
        max_samples=round(config.max_seconds * rate),
        seed=config.seed,
        shards=examples.shards[division.train] if isinstance(examples, ShardedExamples) else None,
        shuffle_shards=config.shuffle_shards,
    )
    batches_an_epoch, heard = batches.count()
    num_batches = config.num_steps * config.batches_a_step
    labels_a_second = MfccFeatures.frame_rate if config.targets == MFCC else model_config.frame_rate
    seconds, in_all = float(train.sum()) / rate, float(lengths.sum()) / rate
    return Plan(
        parameters=parameters,
        clips=len(train),
        hours=seconds / 3600,
        held_back=(in_all - seconds) / 3600,
        unreadable=unreadable,
        steps=config.num_steps,
        seconds_a_step=config.seconds_a_step,
        batches_a_step=config.batches_a_step,
        epochs=num_batches / batches_an_epoch,
        heard=heard / rate / seconds,
        hours_heard=num_batches * heard / batches_an_epoch / rate / 3600,
        label_gigabytes=0.0 if teacher is not None else in_all * labels_a_second * UNIT_BYTES / 1e9,
        learning_rate=config.peak_learning_rate,
    )


def _lengths(config: PretrainConfig, examples: Sequence[Example]) -> tuple[Sequence[Example], NDArray[np.int64], int]:
    """The recordings whose header can be read, their samples, and the number of the others."""
    if isinstance(examples, ShardedExamples):
        return examples, examples.samples, len(examples.left_out)
    readable, lengths = [], []
    for example in examples:
        try:
            lengths.append(round(duration(example.source) * SAMPLING_RATE))
        except AudioError:
            if config.on_error == "raise":
                raise
        else:
            readable.append(example)
    return readable, np.array(lengths, np.int64), len(examples) - len(readable)


def _examples(config: PretrainConfig) -> Sequence[Example]:
    if config.data is None:
        raise ConfigError(
            "no data given; expected a manifest, a folder, shards:PATTERN.tar or hf:owner/name: --data PATH"
        )
    return without_test(read_recordings(config.data, audio_column=config.audio_column))


def _check_output(config: PretrainConfig) -> None:
    """Check that the run does not replace what it learns from.

    Raises:
        ConfigError: it would.
    """
    models = {"targets": config.targets.rpartition(":")[0], "teacher": config.teacher}
    output = config.output_path.resolve()
    for name, model in models.items():
        path = Path(model or "").expanduser().resolve()
        if model and path.exists() and (output == path or output in path.parents):
            raise ConfigError(
                f"output={config.output_path}: {name}={getattr(config, name)} lies there, which the run would replace; "
                "choose another --output"
            )


def _divide(config: PretrainConfig, recordings: Recordings, console: Console | None) -> Division:
    division = hold_back(recordings.examples, config.valid_fraction, config.split_seed)
    if console is not None:
        train, valid = (recordings.select(part).hours for part in (division.train, division.valid))
        console.print(
            f"{train:.2f} h to train on, {valid:.2f} h ({len(division.valid)} recordings) held back, {division.how}",
            markup=False,
        )
    return division


def _checked_features(
    config: PretrainConfig, recordings: Recordings, division: Division, device: torch.device
) -> Features:
    """What the units are made of, which fits the recordings."""
    features = load_features(config.targets, str(device))
    check_targets(
        recordings.examples,
        recordings.lengths,
        features,
        config.units,
        fraction=config.cluster_fraction,
        seed=config.seed,
        fit_on=division.train,
    )
    return features


def _min_samples(config: PretrainConfig, model: MambaHubertConfig) -> int:
    """Samples that a recording must have: room for a hidden span, and what the configuration says."""
    span = model.receptive_field + (model.mask_length - 1) * model.inputs_to_logits_ratio
    return max(span, round(config.min_seconds * model.sampling_rate))


def _recordings(
    config: PretrainConfig,
    model: MambaHubertConfig,
    examples: Sequence[Example],
    known: dict[str, int | str],
    console: Console | None,
) -> Recordings:
    if isinstance(examples, ShardedExamples):
        recordings = sharded_recordings(
            examples, min_samples=_min_samples(config, model), raise_problems=config.on_error == "raise"
        )
    else:
        recordings = _load(config, model, examples, known, console)
    if console is not None:
        left_out = f"{recordings.short} too short, {len(recordings.problems)} unreadable"
        console.print(f"{len(recordings.examples)} recordings, {recordings.hours:.2f} h ({left_out})")
    return recordings


def _load(
    config: PretrainConfig,
    model: MambaHubertConfig,
    examples: Sequence[Example],
    known: dict[str, int | str],
    console: Console | None,
) -> Recordings:
    with rich.progress.Progress(
        console=console, transient=True, disable=console is None or not console.is_terminal
    ) as bar:
        task = bar.add_task("reading recordings", total=len(examples))
        return load_recordings(
            examples,
            min_samples=_min_samples(config, model),
            cache_bytes=config.cache_gb * _GIGABYTE,
            raise_problems=config.on_error == "raise",
            known=known,
            progress=lambda done, total: bar.update(task, completed=done),
        )


def _ledger(folder: RunFolder) -> dict[str, int | str]:
    path = folder.path / RECORDINGS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _make_targets(
    config: PretrainConfig,
    recordings: Recordings,
    division: Division,
    folder: RunFolder,
    device: torch.device,
    features: Features | None,
    console: Console | None,
) -> None:
    make_targets(
        recordings.examples,
        config.targets,
        config.units,
        folder.targets,
        fraction=config.cluster_fraction,
        seed=config.seed,
        device=str(device),
        batch_seconds=config.seconds_a_device,
        features=features,
        fit_on=division.train,
        console=console if console is not None and console.is_terminal else None,
    )


def _bytes_of_windows(config: PretrainConfig, labels: UnitLabels, shards: int) -> int:
    """Memory for the targets of two windows, which each process needs at a time."""
    return max(_LEAST_CACHE, round(2 * config.shuffle_shards * int(labels.frames.sum()) * UNIT_BYTES / shards))


def _wait() -> None:
    """Until all processes are here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def is_first_process() -> bool:
    """Whether this process is the one of several that writes and prints."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _parameters(model: Any) -> dict[str, int]:
    return {
        "encoder": sum(parameter.numel() for parameter in model.mamba_hubert.parameters()),
        "whole": sum(parameter.numel() for parameter in model.parameters()),
    }


def _result(
    config: PretrainConfig,
    trainer: PretrainTrainer,
    recordings: Recordings,
    train: CropDataset | WaveformCrops,
    valid: CropDataset | WaveformCrops,
    parameters: dict[str, int],
) -> PretrainResult:
    history = trainer.state.log_history
    last = next(line for line in reversed(history) if "loss" in line)
    scores: dict[str, float] = next((line for line in reversed(history) if "eval_seconds" in line), {})
    device = trainer.args.device
    teacher = trainer.teacher if isinstance(trainer, DistillationTrainer) else None
    layers = teacher.layers if teacher else {}
    return PretrainResult(
        preset=config.preset,
        targets=f"{config.teacher}:{','.join(map(str, layers))}" if layers else config.targets,
        num_clusters=None if layers else config.units,
        parameters=parameters,
        train={key: value for key, value in last.items() if key not in ("epoch", "step")},
        valid={key.removeprefix("eval_"): value for key, value in scores.items() if key.startswith("eval_")},
        steps=trainer.state.global_step,
        epochs=config.num_steps * config.batches_a_step / trainer.batches.count()[0],
        hours={"train": train.recordings.hours, "valid": valid.recordings.hours},
        clips={"train": len(train), "valid": len(valid)},
        seconds=trainer.clock.seconds,
        short=recordings.short,
        skipped=[{"name": problem.name, "reason": problem.reason} for problem in recordings.problems],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        processes=trainer.args.world_size,
        versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        student_layers=list(layers.values()),
        from_teacher=teacher.given if teacher else [],
    )


def _write_run(
    path: Path,
    folder: RunFolder,
    config: PretrainConfig,
    trainer: PretrainTrainer,
    weights: dict[str, Tensor],
    result: PretrainResult,
) -> None:
    trainer.trained.save_pretrained(path, state_dict=weights)
    Wav2Vec2FeatureExtractor(
        sampling_rate=trainer.model_config.sampling_rate, do_normalize=False, return_attention_mask=True
    ).save_pretrained(path)
    name = Path(config.data or "").name
    figures = trainer.figures
    title = f"{config.preset} on {name}, {result.targets}"
    plot_curve(read_history(folder.path / HISTORY_FILE), path / CURVE_FILE, title, figures.panels)
    card = model_card(result, type(figures), folder.path.as_posix(), name, CURVE_FILE)
    (path / "README.md").write_text(card, encoding="utf-8")
    (path / METRICS_FILE).write_text(to_json(result.to_mapping()), encoding="utf-8")
