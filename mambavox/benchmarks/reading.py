"""How fast one process reads recordings from this storage: files, or tars, whole or in the order of a training."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambavox.data import SAMPLING_RATE, Example, Examples, duration
from mambavox.data.batching import BatchesBySeconds
from mambavox.data.shards.ahead import ReadAhead
from mambavox.data.shards.archive import ShardAudio
from mambavox.errors import ConfigError, DataError

_BLOCK = 8 << 20  # bytes a read


@dataclass(frozen=True)
class ReadingSpeed:
    """How fast recordings were read.

    Attributes:
        how: in words.
        hours_an_hour: hours of speech an hour of one process.
        hours_a_processor_hour: hours of speech an hour of the processor, whatever else the machine does.
        megabytes_a_second: of the files.
        recordings: that were read.
        seconds: that it took.
    """

    how: str
    hours_an_hour: float
    hours_a_processor_hour: float
    megabytes_a_second: float
    recordings: int
    seconds: float


def measure_reading(
    examples: Examples, *, seconds: float = 5.0, shuffle_shards: int = 8, cold: bool = True, seed: int = 0
) -> list[ReadingSpeed]:
    """Read recordings in the order of an epoch for some seconds, with and without decoding; of tars, also whole.

    Args:
        examples: the recordings: files, or tars that hold them.
        seconds: of each measurement, at most.
        shuffle_shards: shards whose recordings are mixed.
        cold: first let the system forget what it holds of the files.
        seed: of the order.

    Raises:
        ConfigError: ``cold``, on a system that cannot forget.
        DataError: a recording is no file.
    """
    found = []
    files: Sequence[Path]
    if examples.samples is not None:
        files, lengths = examples.tars, examples.samples.astype(np.float64)
        found.append(_whole(examples, seconds, cold))
    else:
        files = [_file(example) for example in examples]
        # Before the system forgets the files: it reads their headers.
        lengths = np.array([duration(file) * SAMPLING_RATE for file in files])
    for how, work in (("bytes", _bytes), ("decoded", _decoded)):
        if cold:
            forget(files)
        order = _epoch(examples, shuffle_shards, seed)
        found.append(_timed(f"in the order of an epoch, {how}", examples, lengths, order, work, seconds))
    return found


def forget(files: Iterable[Path]) -> None:
    """Let the system forget what it holds of files in memory.

    Args:
        files: their paths.

    Raises:
        ConfigError: the system cannot.
    """
    if not hasattr(os, "posix_fadvise"):
        raise ConfigError("this system cannot be told to forget files; measure with --warm")
    for path in files:
        number = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(number)


def _epoch(examples: Examples, shuffle_shards: int, seed: int) -> Iterator[int]:
    if examples.samples is None:
        yield from np.random.default_rng(seed).permutation(len(examples)).tolist()
        return
    lengths = examples.samples
    batches = BatchesBySeconds(
        lengths,
        batch_samples=int(lengths.max()),
        max_samples=int(lengths.max()),
        seed=seed,
        shards=examples.shards,
        shuffle_shards=shuffle_shards,
    )
    ahead = ReadAhead(examples.tars)
    windows = batches.windows(0)
    for place, window in enumerate(windows):
        ahead([shard for near in windows[place : place + 2] for shard in near.shards])
        yield from (crop.index for batch in batches.in_window(window) for crop in batch)
    ahead([])


def _whole(examples: Examples, seconds: float, cold: bool) -> ReadingSpeed:
    """Tars from beginning to end, without decoding."""
    assert examples.samples is not None and examples.shards is not None
    if cold:
        forget(examples.tars)
    size = recordings = 0
    samples = 0.0
    start, busy = time.perf_counter(), time.process_time()
    for number, path in enumerate(examples.tars):
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                size += len(block)
        inside = examples.shards == number
        recordings += int(inside.sum())
        samples += float(examples.samples[inside].sum())
        if time.perf_counter() - start > seconds:
            break
    return _speed("tars from beginning to end, bytes", samples, size, recordings, start, busy)


def _timed(
    how: str,
    examples: Sequence[Example],
    lengths: NDArray[Any],
    order: Iterator[int],
    work: Callable[[Example], int],
    seconds: float,
) -> ReadingSpeed:
    size = recordings = 0
    samples = 0.0
    start, busy = time.perf_counter(), time.process_time()
    for index in order:
        size += work(examples[index])
        samples += float(lengths[index])
        recordings += 1
        if time.perf_counter() - start > seconds:
            break
    return _speed(how, samples, size, recordings, start, busy)


def _bytes(example: Example) -> int:
    audio = example.audio
    return len(audio.load()) if isinstance(audio, ShardAudio) else len(_file(example).read_bytes())


def _decoded(example: Example) -> int:
    example.read()
    return example.audio.size if isinstance(example.audio, ShardAudio) else _file(example).stat().st_size


def _file(example: Example) -> Path:
    if not isinstance(example.audio, Path):
        raise DataError(f"{example.name}: is no file; expected files or tars, whose reading is measured")
    return example.audio


def _speed(how: str, samples: float, size: int, recordings: int, start: float, busy: float) -> ReadingSpeed:
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    speech = samples / SAMPLING_RATE
    return ReadingSpeed(how, speech / seconds, speech / max(busy, 1e-6), size / 1e6 / seconds, recordings, seconds)
