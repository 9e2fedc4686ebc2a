"""What a pre-training would do, from the headers of its recordings: ``mambavox pretrain --dry-run``."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mambavox.data import SAMPLING_RATE, Examples, duration
from mambavox.data.batching import BatchesBySeconds
from mambavox.errors import AudioError, DataError
from mambavox.hubert import MambaHubertForPreTraining
from mambavox.training.pretraining.config import MFCC, PretrainConfig
from mambavox.training.pretraining.distillation import DistillationModel
from mambavox.training.pretraining.recordings import hold_back, min_samples, read_examples
from mambavox.training.pretraining.task import count_parameters
from mambavox.training.pretraining.teacher import Teacher
from mambavox.units.features import MfccFeatures
from mambavox.units.labels import UNIT_BYTES


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        parameters: of the encoder, and of the whole model.
        recordings: recordings to train on.
        hours: of speech in them.
        held_back: hours of speech of the valid split.
        unreadable: recordings whose header cannot be read, which are left out.
        steps: updates.
        seconds_a_step: speech an update.
        batches_a_step: batches of one device an update.
        epochs: passes over the recordings.
        heard: share of each pass that is heard; crops leave out the rest.
        hours_heard: hours of speech that all updates hear.
        label_gigabytes: of the targets of both splits; a teacher's are not kept.
        learning_rate: peak.
    """

    parameters: dict[str, int]
    recordings: int
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
    teacher = None if config.teacher is None else Teacher(config, model_config, torch.device("cpu"))
    with torch.device("meta"):
        parameters = count_parameters(
            MambaHubertForPreTraining(model_config)
            if teacher is None
            else DistillationModel(model_config, list(teacher.layers.values()), teacher.dim)
        )
    rate = model_config.sampling_rate
    examples, lengths, unreadable = _lengths(config, read_examples(config))
    usable = np.flatnonzero(lengths >= min_samples(config, model_config))
    if not len(usable):
        raise DataError(f"none of {len(lengths)} recordings can be used: all are too short or cannot be read")
    examples = examples.select(usable)
    lengths = lengths[usable]
    division = hold_back(examples, config.valid_fraction, config.split_seed)
    train = lengths[division.train]
    batches = BatchesBySeconds(
        train,
        batch_samples=round(config.seconds_a_device * rate),
        max_samples=round(config.crop_seconds * rate),
        seed=config.seed,
        shards=None if examples.shards is None else examples.shards[division.train],
        shuffle_shards=config.shuffle_shards,
    )
    batches_an_epoch, heard = batches.count()
    num_batches = config.num_steps * config.batches_a_step
    labels_a_second = MfccFeatures.frame_rate if config.targets == MFCC else model_config.frame_rate
    seconds, in_all = float(train.sum()) / rate, float(lengths.sum()) / rate
    return Plan(
        parameters=parameters,
        recordings=len(train),
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


def _lengths(config: PretrainConfig, examples: Examples) -> tuple[Examples, NDArray[np.int64], int]:
    """The recordings whose header can be read, their samples, and the number of the others."""
    if examples.samples is not None:
        return examples, examples.samples, len(examples.left_out)
    readable, lengths = [], []
    for row, example in enumerate(examples):
        try:
            lengths.append(round(duration(example.source) * SAMPLING_RATE))
        except AudioError:
            if config.on_error == "raise":
                raise
        else:
            readable.append(row)
    return examples.select(readable), np.array(lengths, np.int64), len(examples) - len(readable)
