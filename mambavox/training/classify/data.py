"""Recordings with labels, divided and checked."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from mambavox.data import (
    CORPORA,
    AudioProblem,
    Corpus,
    Example,
    check_audio,
    duration,
    find_corpus,
    make_splits,
    read_examples,
    split_by_protocol,
    take_shots,
)
from mambavox.data.columns import listed
from mambavox.data.segments import notes_on_segments
from mambavox.data.splits import drop_splits
from mambavox.errors import ConfigError, DataError, DataWarning
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.splits import ALL, RunData, Split, checking, left_out_rows

_FITTING = 0.98
_UNBALANCED = 4  # times the recordings of another class


def load_labelled(config: ClassifyConfig, console: Console | None = None) -> RunData:
    """Read and check a run's recordings and divide them.

    Args:
        config: what to read, and how to divide it.
        console: where progress goes.

    Raises:
        ConfigError: no data are given, or a protocol for data that have none.
        DataError: there are no recordings or labels, or a split is not what is needed.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
    """
    corpus = _corpus(config)
    usable, problems, notes = _read(config, console)
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
    named = {"train": splits.train, "valid": splits.valid, "test": splits.test}
    return RunData(
        {name: _split(examples) for name, examples in named.items()},
        left_out_rows(problems),
        [*notes, *splits.notes, *notes_on_segments(named)],
        splits.selects_on_test,
    )


def notes_on_classes(targets: Sequence[str], config: ClassifyConfig) -> list[str]:
    """Sentences about names of classes that are nearly the same, and about classes of very different size.

    Args:
        targets: class of each training recording.
        config: of the run.

    Warns:
        DataWarning: there are such classes, and nothing is done about it.
    """
    counts = Counter(targets)
    spelled: dict[str, list[str]] = {}
    for label in counts:
        spelled.setdefault(" ".join(label.casefold().split()), []).append(label)
    alike = [" and ".join(map(repr, labels)) for labels in spelled.values() if len(labels) > 1]
    notes = [f"classes that differ in capitals or spaces alone: {listed(alike)}; are they the same?"] if alike else []
    for note in notes:
        warnings.warn(f"{config.data}: {note}", DataWarning, stacklevel=3)
    (largest, most), (smallest, fewest) = max(counts.items(), key=_size), min(counts.items(), key=_size)
    if most < _UNBALANCED * fewest:
        return notes
    note = f"unbalanced classes: train has {most} recordings of {largest} and {fewest} of {smallest}"
    if config.class_balance == "none":
        mend = (
            "a classifier that never says the small ones can have a high accuracy: look at macro F1, choose the epoch "
            "by it (--metric-for-best-model macro_f1), or count the classes alike (--class-balance weights or sampling)"
        )
        warnings.warn(f"{config.data}: {note}; {mend}", DataWarning, stacklevel=3)
        return [*notes, f"{note}; nothing is done about it (--class-balance)"]
    how = {"weights": "weighted in the loss", "sampling": "drawn equally often"}[config.class_balance]
    return [*notes, f"{note}; the classes are {how} (--class-balance {config.class_balance})"]


def _size(item: tuple[str, int]) -> int:
    return item[1]


def load_all(config: ClassifyConfig, console: Console | None = None) -> RunData:
    """All recordings of some data as one split.

    Args:
        config: what to read.
        console: where progress goes.

    Raises:
        ConfigError, DataError, AudioError: as :func:`load_labelled`.
    """
    usable, problems, notes = _read(config, console)
    return RunData({ALL: _split(usable)}, left_out_rows(problems), notes)


def _read(config: ClassifyConfig, console: Console | None) -> tuple[list[Example], list[AudioProblem], list[str]]:
    """The usable recordings, those that cannot be used, and what is said of those that were left out on purpose."""
    source = config.given_data
    found = read_examples(source, label_column=config.label_column, audio_column=config.audio_column)
    examples, notes = drop_splits(found, config.drop_splits, [config.split_column or "split"])
    if any(example.label is None for example in examples):
        raise DataError(_without_labels(source, config.label_column, examples))
    with checking(len(examples), console) as advance:
        usable, problems = check_audio(
            examples,
            min_seconds=config.min_seconds,
            on_error=config.on_error,
            progress=lambda done, total: advance(),
        )
    return usable, problems, notes


def _without_labels(source: str, column: str, examples: list[Example]) -> str:
    if any(column in example.fields for example in examples) or not Path(source).expanduser().is_dir():
        return f"{source}: column {column!r} is empty; name the classes with --label-column"
    return (
        f"{source}: holds {len(examples)} recordings whose classes nobody knows; expected a folder for each class "
        f"({source}/dog/a.wav), or a file {source}/metadata.csv with the columns file_name and label"
    )


def _split(examples: list[Example]) -> Split:
    return Split(
        list(examples), [str(example.label) for example in examples], [duration(item.source) for item in examples]
    )


def _corpus(config: ClassifyConfig) -> Corpus | None:
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


def fitting_seconds(split: Split, limit: float) -> float:
    """Length, in seconds, into which 98 % of some recordings fit, but no more than the limit.

    One endless recording would otherwise decide the cost of every batch.
    """
    return min(float(np.quantile(split.seconds, _FITTING, method="higher")), limit)


def natural_order(labels: set[str]) -> list[str]:
    """Labels in alphabetical order, but with numbers by value: 2 before 10."""

    def parts(label: str) -> list[str]:
        return [part.zfill(20) if part.isdigit() else part for part in re.split(r"(\d+)", label)]

    return sorted(labels, key=parts)
