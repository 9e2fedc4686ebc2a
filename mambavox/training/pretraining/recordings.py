"""The recordings of a pre-training: checked and decoded once, kept in memory as 16-bit samples while there is room."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mambavox.data import SAMPLING_RATE, AudioProblem, Example, Examples, ListedExamples, read_recordings
from mambavox.data.audio import dequantise, quantise
from mambavox.data.checks import warn_of_lengths
from mambavox.data.splits import Part, drop_splits
from mambavox.errors import AudioError, ConfigError, DataError
from mambavox.hubert import MambaHubertConfig
from mambavox.training.pretraining.config import PretrainConfig

_LISTED = 20  # problems in one error message
_SAMPLE_BYTES = 2  # of a recording in memory
_GIGABYTE = 1e9
_AHEAD = 64  # recordings decoded and not yet looked at

_Read: TypeAlias = tuple[NDArray[np.int16] | None, int | str]


@dataclass(frozen=True)
class Recordings:
    """Recordings that can be used.

    Attributes:
        examples: the recordings.
        keys: what targets call the recordings that have targets, which may be more than these.
        places: index of each in ``keys``.
        lengths: samples of each at 16 kHz.
        kept: the samples of those that are in memory; empty of recordings in shards, of which none is.
        problems: those that cannot be read.
        short: number of those that are too short.
        ledger: name -> samples, or what is wrong, of every recording that was looked at; of shards, name of the tar ->
            number of its recordings.
    """

    examples: Examples
    keys: Sequence[str]
    places: NDArray[np.int64]
    lengths: NDArray[np.int64]
    kept: Sequence[NDArray[np.int16] | None]
    problems: list[AudioProblem]
    short: int
    ledger: Mapping[str, int | str]

    @property
    def hours(self) -> float:
        """Length of all."""
        return float(self.lengths.sum()) / SAMPLING_RATE / 3600

    @property
    def shards(self) -> NDArray[np.int32] | None:
        """Number of the tar of each; ``None`` where they are no shards."""
        return self.examples.shards

    def __len__(self) -> int:
        return len(self.examples)

    def key(self, index: int) -> str:
        """What targets call a recording."""
        return self.keys[self.places[index]]

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "Recordings":
        """Some of them."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            examples=self.examples.select(rows),
            places=self.places[rows],
            lengths=self.lengths[rows],
            kept=[self.kept[row] for row in rows] if self.kept else [],
        )

    def read(self, index: int, start: int, samples: int) -> NDArray[np.float32]:
        """A stretch of a recording: the same samples, whether or not it is in memory.

        Args:
            index: of the recording.
            start: first sample at 16 kHz.
            samples: length.

        Raises:
            AudioError: the recording cannot be read.
        """
        content = self.kept[index] if self.kept else None
        if content is None:
            content = quantise(self.examples[index].read())
        return dequantise(content[start : start + samples])


def read_examples(config: PretrainConfig) -> Examples:
    """The recordings of a run that are of no test split.

    Args:
        config: the run.

    Raises:
        ConfigError: no data are given, or splits of tars are to be dropped.
        DataError: there are no recordings, or some name their split and others do not.
    """
    examples = read_recordings(config.given_data, audio_column=config.audio_column)
    if config.drop_splits is not None:
        if examples.tars:
            raise ConfigError(
                f"drop_splits={config.drop_splits} names values of a column, and tars are of a split by their names; "
                "leave the tars out of --data"
            )
        examples = ListedExamples(drop_splits(examples, config.drop_splits)[0])
    return without_test(examples)


def min_samples(config: PretrainConfig, model: MambaHubertConfig) -> int:
    """Samples that a recording must have: room for a hidden span, and what the configuration says."""
    span = model.receptive_field + (model.mask_length - 1) * model.inputs_to_logits_ratio
    return max(span, round(config.min_seconds * model.sampling_rate))


def load(
    config: PretrainConfig,
    model: MambaHubertConfig,
    examples: Examples,
    known: Mapping[str, int | str],
    progress: Callable[[int, int], None],
) -> "Recordings":
    """The usable recordings of a run; see :func:`indexed_recordings` and :func:`load_recordings`."""
    shortest, raise_problems = min_samples(config, model), config.on_error == "raise"
    if examples.samples is not None:
        return indexed_recordings(examples, min_samples=shortest, raise_problems=raise_problems)
    return load_recordings(
        examples,
        min_samples=shortest,
        cache_bytes=config.cache_gb * _GIGABYTE,
        raise_problems=raise_problems,
        known=known,
        progress=progress,
    )


def indexed_recordings(examples: Examples, *, min_samples: int, raise_problems: bool) -> Recordings:
    """The recordings of shards, which were decoded and checked when they were packed or indexed.

    Args:
        examples: the recordings.
        min_samples: shortest usable length at 16 kHz; shorter ones are counted.
        raise_problems: report recordings that were left out of the index in an error, in place of leaving them out.

    Raises:
        AudioError: recordings were left out and ``raise_problems`` is set.
        DataError: no recording is usable.
    """
    if examples.left_out and raise_problems:
        raise AudioError(_unusable(examples.left_out, len(examples) + len(examples.left_out)))
    assert examples.samples is not None and examples.shards is not None
    usable = np.flatnonzero(examples.samples >= min_samples)
    short = len(examples) - len(usable)
    if not len(usable):
        raise DataError(_none_usable(len(examples), short, min_samples))
    found = examples.select(usable)
    counts = np.bincount(examples.shards[usable], minlength=len(examples.tars)).tolist()
    ledger = {path.name: count for path, count in zip(examples.tars, counts, strict=True)}
    lengths = examples.samples[usable]
    return Recordings(found, found.keys, np.arange(len(found)), lengths, [], examples.left_out, short, ledger)


def load_recordings(
    examples: Examples,
    *,
    min_samples: int,
    cache_bytes: float,
    raise_problems: bool,
    known: Mapping[str, int | str] = MappingProxyType({}),
    progress: Callable[[int, int], None] | None = None,
) -> Recordings:
    """Decode recordings, keep them in memory while there is room, and leave out those that cannot be used.

    Args:
        examples: what to read.
        min_samples: shortest usable length at 16 kHz; shorter ones are counted.
        cache_bytes: memory for samples.
        raise_problems: report recordings that cannot be read in one error, in place of leaving them out.
        known: an earlier ``ledger`` of the same recordings: what does not fit into memory is not read again.
        progress: called with the numbers of recordings done and in all, after each.

    Raises:
        AudioError: recordings cannot be read and ``raise_problems`` is set; the message names them.
        DataError: no recording is usable.
    """
    kept_bytes = 0

    def read(example: Example) -> _Read:
        return _read_or_remember(example, known.get(example.name), cache_bytes - kept_bytes)

    usable: list[int] = []
    lengths: list[int] = []
    kept: list[NDArray[np.int16] | None] = []
    problems: list[AudioProblem] = []
    found: dict[str, int | str] = {}
    short = 0
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for row, (example, (samples, length)) in enumerate(zip(examples, _ahead(pool, read, examples), strict=True)):
            found[example.name] = length
            if isinstance(length, str):
                problems.append(AudioProblem(example.name, length))
            elif length < min_samples:
                short += 1
            else:
                if samples is not None and kept_bytes + samples.nbytes <= cache_bytes:
                    kept_bytes += samples.nbytes
                else:
                    samples = None
                usable.append(row)
                lengths.append(length)
                kept.append(samples)
            if progress is not None:
                progress(row + 1, len(examples))
    if problems and raise_problems:
        raise AudioError(_unusable(problems, len(examples)))
    if not usable:
        raise DataError(_none_usable(len(examples), short, min_samples, problems))
    chosen = examples.select(usable)
    warn_of_lengths(chosen, [length / SAMPLING_RATE for length in lengths])
    places = np.arange(len(usable))
    return Recordings(chosen, chosen.keys, places, np.array(lengths, np.int64), kept, problems, short, found)


def _read_or_remember(example: Example, samples_then: int | str | None, room: float) -> _Read:
    """The samples, if there is room for them or nobody knows how many they are, and their number or what is wrong."""
    if isinstance(samples_then, int) and _SAMPLE_BYTES * samples_then > room:
        return None, samples_then
    try:
        samples = quantise(example.read())
    except AudioError as error:
        return None, str(error)
    return samples, len(samples)


def _none_usable(number: int, short: int, min_samples: int, problems: Sequence[AudioProblem] = ()) -> str:
    reasons = "\n".join(f"  {problem.reason}" for problem in problems[:_LISTED])
    return (
        f"none of {number} recordings can be used: {short} are shorter than {min_samples / SAMPLING_RATE:.2f} s, "
        f"{len(problems)} cannot be read\n{reasons}".rstrip()
    )


def _unusable(problems: Sequence[AudioProblem], number: int) -> str:
    reasons = "\n".join(f"  {problem.reason}" for problem in problems[:_LISTED])
    more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return (
        f"{len(problems)} of {number} recordings cannot be used:\n{reasons}{more}\n"
        "Mend them or take them out, or leave them out with --on-error skip"
    )


class Division(NamedTuple):
    """Recordings for training and for validation.

    Attributes:
        train: indices.
        valid: indices.
        how: what decided.
    """

    train: list[int]
    valid: list[int]
    how: str


def without_test(examples: Examples) -> Examples:
    """The recordings that are of no test split, which is neither read nor labelled.

    Args:
        examples: the recordings.

    Raises:
        DataError: some name their split and others do not, or nothing is left for training.
    """
    rows, _ = _rows_of_splits(examples)
    if rows is None or not rows["test"]:
        return examples
    return examples.select(sorted([*rows["train"], *rows["valid"]]))


def hold_back(examples: Examples, fraction: float, seed: int) -> Division:
    """Divide recordings into those for training and those for validation.

    A column ``split`` decides, if there is one, and of shards their names (``train-000000.tar``,
    ``valid-000000.tar``). Else whole shards are drawn, or recordings where there are no shards or too few of them.

    Args:
        examples: the recordings.
        fraction: share drawn for validation where nothing else decides; at least one recording.
        seed: of the draw.

    Raises:
        DataError: some name their split and others do not, or nothing is left for training.
    """
    rows, where = _rows_of_splits(examples)
    if rows is not None:
        return Division(rows["train"], rows["valid"], f"by {where}")
    if not fraction:
        return Division(list(range(len(examples))), [], "by --valid-fraction 0")
    shards = examples.shards
    if shards is not None:
        present = np.unique(shards)
        if fraction * len(present) >= 1:
            drawn = np.isin(shards, present[_drawn(len(present), fraction, seed)])
            return Division(
                np.flatnonzero(~drawn).tolist(), np.flatnonzero(drawn).tolist(), "by a draw of whole shards"
            )
        how = f"by a draw of recordings: {len(present)} shards are fewer than one over --valid-fraction {fraction:g}"
    else:
        how = "by a draw of recordings"
    chosen = _drawn(len(examples), fraction, seed)
    kept = set(chosen)
    return Division([row for row in range(len(examples)) if row not in kept], chosen, how)


def _rows_of_splits(examples: Examples) -> tuple[dict[Part, list[int]] | None, str]:
    """The recordings of each split, where something names it, and what does.

    Raises:
        DataError: some name their split and others do not, or none is named train.
    """
    splits, where = examples.splits()
    if splits is None:
        return None, where
    rows: dict[Part, list[int]] = {"train": [], "valid": [], "test": []}
    for row, split in enumerate(splits):
        rows[split].append(row)
    if not rows["train"]:
        raise DataError(f"{where}: none of {len(examples)} recordings is of the split train; expected some")
    return rows, where


def _drawn(number: int, fraction: float, seed: int) -> list[int]:
    """Some of so many things, at least one and not all."""
    count = min(max(round(fraction * number), 1), number - 1)
    return sorted(np.random.default_rng(seed).permutation(number)[:count].tolist())


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Example], _Read], examples: Sequence[Example]) -> Iterator[_Read]:
    """``pool.map`` with few results waiting, so that recordings that are not kept do not fill the memory."""
    waiting: deque[Future[_Read]] = deque()
    for example in examples:
        waiting.append(pool.submit(work, example))
        if len(waiting) >= _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
