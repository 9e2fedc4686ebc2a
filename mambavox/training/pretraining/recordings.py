"""The recordings of a pre-training: checked and decoded once, kept in memory as 16-bit samples while there is room."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mambavox.data import SAMPLING_RATE, AudioProblem, Example, ShardedExamples, recording_keys
from mambavox.data.audio import dequantise, quantise
from mambavox.data.splits import part_named
from mambavox.errors import AudioError, DataError

_LISTED = 20  # problems in one error message
_AHEAD = 64  # recordings decoded and not yet looked at

_Read: TypeAlias = tuple[NDArray[np.int16] | None, int | str]


@dataclass(frozen=True)
class Recordings:
    """Recordings that can be used.

    Attributes:
        examples: the recordings.
        keys: what their targets are called by.
        places: number of each among the recordings that have targets.
        lengths: samples of each at 16 kHz.
        kept: the samples of those that are in memory; empty of recordings in shards, of which none is.
        problems: those that cannot be read.
        short: number of those that are too short.
        ledger: name -> samples, or what is wrong, of every recording that was looked at; of shards, name of the tar ->
            number of its recordings.
    """

    examples: Sequence[Example]
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
        return self.examples.shards if isinstance(self.examples, ShardedExamples) else None

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "Recordings":
        """Some of them."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            **_selected(self.examples, self.keys, rows),
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


def _selected(examples: Sequence[Example], keys: Sequence[str], rows: NDArray[np.int64]) -> dict[str, Any]:
    if isinstance(examples, ShardedExamples):
        selected = examples.select(rows)
        return {"examples": selected, "keys": selected.keys}
    return {"examples": [examples[row] for row in rows], "keys": [keys[row] for row in rows]}


def sharded_recordings(examples: ShardedExamples, *, min_samples: int, raise_problems: bool) -> Recordings:
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
    usable = np.flatnonzero(examples.samples >= min_samples)
    short = len(examples) - len(usable)
    if not len(usable):
        raise DataError(
            f"none of {len(examples)} recordings can be used: {short} are shorter than "
            f"{min_samples / SAMPLING_RATE:.2f} s"
        )
    found = examples.select(usable)
    counts = np.bincount(found.shards, minlength=len(examples.paths)).tolist()
    ledger = {path.name: count for path, count in zip(examples.paths, counts, strict=True)}
    return Recordings(found, found.keys, np.arange(len(found)), found.samples, [], examples.left_out, short, ledger)


def load_recordings(
    examples: Sequence[Example],
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
        """The samples, if anybody needs them, and their number or what is wrong."""
        if example.name in known and kept_bytes >= cache_bytes:
            return None, known[example.name]
        try:
            samples = quantise(example.read())
        except AudioError as error:
            return None, str(error)
        return samples, len(samples)

    usable: list[Example] = []
    lengths: list[int] = []
    kept: list[NDArray[np.int16] | None] = []
    problems: list[AudioProblem] = []
    found: dict[str, int | str] = {}
    short = 0
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for done, (example, (samples, length)) in enumerate(
            zip(examples, _ahead(pool, read, examples), strict=True), start=1
        ):
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
                usable.append(example)
                lengths.append(length)
                kept.append(samples)
            if progress is not None:
                progress(done, len(examples))
    if problems and raise_problems:
        raise AudioError(_unusable(problems, len(examples)))
    if not usable:
        reasons = "\n".join(f"  {problem.reason}" for problem in problems[:_LISTED])
        raise DataError(
            f"none of {len(examples)} recordings can be used: {short} are shorter than "
            f"{min_samples / SAMPLING_RATE:.2f} s, {len(problems)} cannot be read\n{reasons}".rstrip()
        )
    keys = recording_keys(usable)
    return Recordings(usable, keys, np.arange(len(usable)), np.array(lengths, np.int64), kept, problems, short, found)


def _unusable(problems: Sequence[AudioProblem], number: int) -> str:
    reasons = "\n".join(f"  {problem.reason}" for problem in problems[:_LISTED])
    more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return (
        f"{len(problems)} of {number} recordings cannot be used:\n{reasons}{more}\n"
        "Mend them or take them out, or leave them out with --on-error skip"
    )


def hold_back(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide recordings into those for training and those for validation.

    A column ``split`` with the usual words decides, if all recordings have it, and its test part is left out. Of shards
    the names decide (``train-000000.tar``, ``valid-000000.tar``); where they do not, whole shards are drawn.

    Args:
        examples: the recordings.
        fraction: share drawn for validation where nothing else decides; at least one recording, or one shard.
        seed: of the draw.

    Returns:
        Indices of the training and of the valid part.

    Raises:
        DataError: nothing is left for training.
    """
    if isinstance(examples, ShardedExamples):
        shards, names = examples.shards, examples.parts()
        present = np.unique(shards)
        words = [names[shard] for shard in present]
        if all(words) or len(present) > 1:
            train, valid = _hold_back(words, fraction, seed, "the names of the shards", "shards")
            chosen = [np.flatnonzero(np.isin(shards, present[part])).tolist() for part in (train, valid)]
            return chosen[0], chosen[1]
        return _hold_back([None] * len(examples), fraction, seed, "", "recordings")
    parts = [part_named(example.fields.get("split")) for example in examples]
    return _hold_back(parts, fraction, seed, "the column split", "recordings")


def _hold_back(
    parts: Sequence[str | None], fraction: float, seed: int, where: str, what: str
) -> tuple[list[int], list[int]]:
    if all(parts):
        train = [index for index, part in enumerate(parts) if part == "train"]
        valid = [index for index, part in enumerate(parts) if part == "valid"]
    else:
        count = min(max(round(fraction * len(parts)), 1), len(parts) - 1) if fraction > 0 else 0
        order = np.random.default_rng(seed).permutation(len(parts)).tolist()
        train, valid = sorted(order[count:]), sorted(order[:count])
    if not train:
        raise DataError(f"{where} names none of {len(parts)} {what} train; expected some")
    return train, valid


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Example], _Read], examples: Sequence[Example]) -> Iterator[_Read]:
    """``pool.map`` with few results waiting, so that recordings that are not kept do not fill the memory."""
    waiting: deque[Future[_Read]] = deque()
    for example in examples:
        waiting.append(pool.submit(work, example))
        if len(waiting) >= _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
