"""The recordings of a pre-training: checked and decoded once, kept in memory as 16-bit samples while there is room."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mambavox.data import SAMPLING_RATE, AudioProblem, Example
from mambavox.data.splits import part_named
from mambavox.errors import AudioError, DataError
from mambavox.units.labels import recording_keys

_LISTED = 20  # problems in one error message
_AHEAD = 64  # recordings decoded and not yet looked at
_FULL_SCALE = 1 << 15

_Read: TypeAlias = tuple[NDArray[np.int16] | None, int | str]


@dataclass(frozen=True)
class Recordings:
    """Recordings that can be used.

    Attributes:
        examples: the recordings.
        keys: what their targets are called by.
        lengths: samples of each at 16 kHz.
        kept: the samples of those that are in memory.
        problems: those that cannot be read.
        short: number of those that are too short.
        ledger: name -> samples, or what is wrong, of every recording that was looked at.
    """

    examples: list[Example]
    keys: list[str]
    lengths: list[int]
    kept: list[NDArray[np.int16] | None]
    problems: list[AudioProblem]
    short: int
    ledger: Mapping[str, int | str]

    @property
    def hours(self) -> float:
        """Length of all."""
        return sum(self.lengths) / SAMPLING_RATE / 3600

    def select(self, indices: Sequence[int]) -> "Recordings":
        """Some of them."""
        return replace(
            self,
            examples=[self.examples[index] for index in indices],
            keys=[self.keys[index] for index in indices],
            lengths=[self.lengths[index] for index in indices],
            kept=[self.kept[index] for index in indices],
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
        content = self.kept[index]
        if content is None:
            content = quantise(self.examples[index].read())
        return content[start : start + samples].astype(np.float32) / np.float32(_FULL_SCALE)


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
        reasons = "\n".join(f"  {problem.reason}" for problem in problems[:_LISTED])
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise AudioError(
            f"{len(problems)} of {len(examples)} recordings cannot be used:\n{reasons}{more}\n"
            "Mend them or take them out, or leave them out with --on-error skip"
        )
    if not usable:
        reasons = "\n".join(f"  {problem.reason}" for problem in problems[:_LISTED])
        raise DataError(
            f"none of {len(examples)} recordings can be used: {short} are shorter than "
            f"{min_samples / SAMPLING_RATE:.2f} s, {len(problems)} cannot be read\n{reasons}".rstrip()
        )
    return Recordings(usable, recording_keys(usable), lengths, kept, problems, short, found)


def quantise(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples with 16 bits, as most recordings are stored."""
    return np.clip(np.rint(waveform * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def hold_back(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide recordings into those for training and those for validation.

    A column ``split`` with the usual words decides, if all recordings have it, and its test part is left out.

    Args:
        examples: the recordings.
        fraction: share drawn for validation where no column decides.
        seed: of the draw.

    Returns:
        Indices of the training and of the valid part.

    Raises:
        DataError: nothing is left for training.
    """
    parts = [part_named(example.fields.get("split")) for example in examples]
    if all(parts):
        train = [index for index, part in enumerate(parts) if part == "train"]
        valid = [index for index, part in enumerate(parts) if part == "valid"]
    else:
        count = min(max(round(fraction * len(examples)), 1), len(examples) - 1) if fraction > 0 else 0
        order = np.random.default_rng(seed).permutation(len(examples)).tolist()
        train, valid = sorted(order[count:]), sorted(order[:count])
    if not train:
        raise DataError(f"the column split names none of {len(examples)} recordings train; expected some")
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
