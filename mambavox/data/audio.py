"""Read recordings: any common file or array becomes a mono float32 waveform at one sampling rate."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soxr
from numpy.typing import NDArray

from mambavox.data.audio_file import MAX_HOURS, MAX_RATE, MIN_RATE, AudioFile, file_length
from mambavox.errors import AudioError

SAMPLING_RATE = 16_000
"""Hz; the rate of every model here."""

FULL_SCALE = 1 << 15
"""Of samples with 16 bits."""

READABLE_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
"""File name endings that ``read_audio`` reads."""

AUDIO_SUFFIXES = READABLE_SUFFIXES | {".m4a", ".aac", ".mp4", ".wma", ".webm", ".amr", ".aif", ".aiff", ".au"}
"""File name endings that mean a recording, so that one we cannot read is reported and not overlooked."""

Waveform: TypeAlias = NDArray[np.float32]
"""``(samples,)`` mono, full scale 1."""

_BLOCK = 1 << 20  # samples a read

LACKING = 0.1
"""Seconds that may be missing at a stretch's end: lists round."""


@dataclass(frozen=True)
class AudioSegment:
    """A stretch of a recording, read when it is needed and without the rest.

    Attributes:
        path: the whole recording.
        start: seconds.
        end: seconds; ``None``: to the recording's end. It may lie a tenth of a second beyond that, since lists round.
    """

    path: Path
    start: float
    end: float | None = None

    def __str__(self) -> str:
        return f"{self.path} {self.times} s"

    @property
    def times(self) -> str:
        """Start and end in seconds, such as ``0.100-2.500``; two stretches of a recording differ in them."""
        return f"{_clock(self.start)}-{'end' if self.end is None else _clock(self.end)}"

    @property
    def name(self) -> str:
        """What a file of this stretch alone would be called: ``meeting_0.100-2.500.wav``."""
        return f"{self.path.stem}_{self.times}{self.path.suffix}"

    def load(self) -> tuple[Waveform, int]:
        """``(samples,)`` of the mean of the channels, and their rate in Hz.

        Raises:
            AudioError: the recording cannot be read, or ends before the stretch does.
        """
        return decode_audio(self)

    def __iter__(self) -> Iterator[Any]:
        """Unpacked, it is what :meth:`load` gives."""
        return iter(self.load())


def _clock(seconds: float) -> str:
    """Milliseconds, and what is finer only where there is something finer."""
    whole, _, decimals = f"{seconds:.6f}".partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(3, '0')}"


AudioSource: TypeAlias = str | Path | bytes | NDArray[Any] | tuple[NDArray[Any], int] | Mapping[str, Any] | AudioSegment
"""Whatever ``read_audio`` reads."""


def read_audio(source: AudioSource, sampling_rate: int = SAMPLING_RATE, *, name: str | None = None) -> Waveform:
    """Read a recording as a mono waveform at one sampling rate.

    Files are read by libsndfile (wav, flac, ogg, mp3), channels are averaged, and soxr resamples.

    Args:
        source: a file's path; a file's bytes; an array ``(samples,)`` or two-dimensional with the channels on its
            shorter axis, already at ``sampling_rate``; ``(array, its rate in Hz)``; or a mapping in the form of
            ``datasets``: ``{"bytes", "path"}`` or ``{"array", "sampling_rate"}``; or a stretch of a file. Integer
            arrays are scaled by their type's full scale.
        sampling_rate: Hz wanted.
        name: what error messages call the recording; default its path.

    Returns:
        ``(samples,)`` float32 at ``sampling_rate``.

    Raises:
        AudioError: the file is missing, not a recording, corrupt, cut off, longer than its header says and than can
            be read, or longer than a day; its sampling rate is out of bounds; the recording has no samples, or values
            that are NaN or infinite; a stretch ends behind the file's end.
    """
    waveform, rate = decode_audio(source, sampling_rate, name=name)
    if rate == sampling_rate:
        return waveform
    resampled: Waveform = soxr.resample(waveform, rate, sampling_rate)
    if not len(resampled):
        raise AudioError(
            f"{_name_of(source, name)}: its {len(waveform)} samples at {rate} Hz make none at {sampling_rate} Hz"
        )
    return resampled


def decode_audio(
    source: AudioSource, sampling_rate: int = SAMPLING_RATE, *, name: str | None = None
) -> tuple[Waveform, int]:
    """Read a recording as a mono waveform at its own sampling rate.

    Args:
        source: see :func:`read_audio`.
        sampling_rate: Hz of an array that comes without a rate.
        name: what error messages call the recording; default its path.

    Returns:
        ``(samples,)`` float32, and its rate in Hz.

    Raises:
        AudioError: see :func:`read_audio`.
    """
    name = _name_of(source, name)
    content = _content(source, name)
    if isinstance(content, (Path, bytes, AudioSegment)):
        blocks = []
        with _decoding(content, name) as (rate, decoded):
            read = 0
            for block in decoded:
                blocks.append(block)
                read += len(block)
                if read > MAX_HOURS * 3600 * rate:
                    raise AudioError(
                        f"{name}: is longer than {MAX_HOURS} h; cut it, or read it block by block (mambavox transcribe "
                        "does)"
                    )
        return np.concatenate(blocks), rate
    frames, rate = _frames(content, sampling_rate, name)
    if not len(frames):
        raise AudioError(f"{name}: has no samples; expected a recording with sound")
    waveform = _mix(frames)
    _check_finite(waveform, 0, rate, name)
    return waveform, rate


@contextmanager
def _decoding(
    content: Path | bytes | AudioSegment, name: str, seconds: float = math.inf
) -> Iterator[tuple[int, Iterator[Waveform]]]:
    """Rate of a file or of a stretch of one, and its blocks of at most some seconds."""
    with AudioFile(content.path if isinstance(content, AudioSegment) else content, name) as file:
        size = max(1, round(min(seconds * file.rate, _BLOCK)))
        yield file.rate, _checked_blocks(file, content, name, size)


def _checked_blocks(file: AudioFile, content: Path | bytes | AudioSegment, name: str, size: int) -> Iterator[Waveform]:
    read = 0
    for frames in (
        _segment_blocks(file, content, name, size) if isinstance(content, AudioSegment) else file.blocks(size)
    ):
        block = _mix(frames)
        _check_finite(block, read, file.rate, name)
        read += len(block)
        yield block
    if not read:
        raise AudioError(f"{name}: has no samples; expected a recording with sound")


def _segment_blocks(file: AudioFile, segment: AudioSegment, name: str, size: int) -> Iterator[NDArray[np.float32]]:
    if not 0 <= segment.start < (math.inf if segment.end is None else segment.end):
        raise AudioError(
            f"{name}: goes from {segment.start:g} to {segment.end} s; expected a start of at least 0, before its end"
        )
    first, last = _bounds(segment, file.rate)
    read = 0
    for block in file.stretch(first, last, size):
        read += len(block)
        yield block
    if not read:
        raise AudioError(f"{name}: the recording ends before {segment.start:g} s, where this stretch of it begins")
    if last is not None and last - first - read > LACKING * file.rate:
        raise AudioError(
            f"{name}: the recording ends at {(first + read) / file.rate:.3f} s, before {segment.end:g} s, where this "
            "stretch of it ends; mend the list"
        )


def _bounds(segment: AudioSegment, rate: int) -> tuple[int, int | None]:
    """First sample of a stretch, and the one behind its last."""
    first = round(segment.start * rate)
    return first, None if segment.end is None else max(first + 1, round(segment.end * rate))


def check_samples(samples: Waveform, name: str = "the samples given") -> None:
    """Check samples that come piece by piece, and that are taken as they are.

    Args:
        samples: ``(samples,)`` floats of full scale 1, any number of them.
        name: what error messages call them.

    Raises:
        AudioError: they are no such array, or some are NaN or infinite.
    """
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(
            f"{name}: an array of {samples.dtype} and shape {samples.shape}; expected floats of shape (samples,) "
            "(mambavox.data.read_audio makes them)"
        )
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: some are NaN or infinite; leave them out, or put 0 in their place")


def _check_finite(waveform: Waveform, before: int, rate: int, name: str) -> None:
    if not np.isfinite(waveform).all():
        bad = np.flatnonzero(~np.isfinite(waveform))
        raise AudioError(
            f"{name}: some samples are NaN or infinite, the first at {(before + bad[0]) / rate:.3f} s; record or "
            "convert it again"
        )


def quantise(waveform: Waveform) -> NDArray[np.int16]:
    """Samples with 16 bits, as most recordings are stored."""
    return np.clip(np.rint(waveform * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def dequantise(samples: NDArray[np.integer]) -> Waveform:
    """What :func:`quantise` was given, but for rounding."""
    return samples.astype(np.float32) / np.float32(FULL_SCALE)


def read_blocks(
    path: str | Path | AudioSegment, sampling_rate: int = SAMPLING_RATE, seconds: float = 5.0
) -> Iterator[Waveform]:
    """Read a recording of any length block by block; end to end they are what ``read_audio`` reads.

    Memory does not grow with the recording's length. Some errors are only found at its end.

    Args:
        path: the file, or a stretch of one.
        sampling_rate: Hz wanted.
        seconds: length of a block.

    Yields:
        ``(samples,)`` float32 at ``sampling_rate``, at most about ``seconds`` of them, at least one.

    Raises:
        AudioError: see :func:`read_audio`.
    """
    content, name = path if isinstance(path, AudioSegment) else Path(path).expanduser(), str(path)
    with _decoding(content, name, seconds) as (rate, blocks):
        resampler = None if rate == sampling_rate else soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32")
        read = made = 0
        for block in blocks:
            read += len(block)
            if resampler is not None:
                block = resampler.resample_chunk(block)
            made += len(block)
            if len(block):
                yield block
        if resampler is not None:
            block = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
            if not made + len(block):
                raise AudioError(f"{name}: its {read} samples at {rate} Hz make none at {sampling_rate} Hz")
            if len(block):
                yield block


def duration(source: AudioSource) -> float:
    """Seconds of a recording: as many as ``read_audio`` reads.

    They are taken from the header where it can be trusted (wav, FLAC, ogg). The frames of an mp3 are counted and a FLAC
    whose header states no length is decoded, once for each file until it changes; memory does not grow with either.

    Args:
        source: see :func:`read_audio`; an array without a rate counts as at ``SAMPLING_RATE``.

    Raises:
        AudioError: the file is missing or is not a recording, or must be decoded and is corrupt.
    """
    name = _name_of(source, None)
    content = _content(source, name)
    if isinstance(content, AudioSegment):
        # One name for all stretches of a file, which is measured once.
        samples, rate = file_length(content.path, str(content.path))
        first, last = _bounds(content, rate)
        return max(0, min(samples, samples if last is None else last) - first) / rate
    if isinstance(content, (Path, bytes)):
        samples, rate = file_length(content, name)
        return samples / rate
    frames, rate = _frames(content, SAMPLING_RATE, name)
    return len(frames) / rate


def _name_of(source: AudioSource, name: str | None) -> str:
    if name is not None:
        return name
    if isinstance(source, (str, Path, AudioSegment)):
        return str(source)
    if isinstance(source, Mapping) and source.get("path"):
        return str(source["path"])
    return "a recording given as " + ("bytes" if isinstance(source, bytes) else "an array")


def _content(source: AudioSource, name: str) -> Path | bytes | NDArray[Any] | tuple[NDArray[Any], int] | AudioSegment:
    """Reduce the forms of a source to a file, its bytes, or an array."""
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return bytes(source["bytes"])
        if source.get("array") is not None and source.get("sampling_rate") is not None:
            try:
                return np.asarray(source["array"]), int(source["sampling_rate"])
            except (TypeError, ValueError, OverflowError) as error:
                raise AudioError(f"{name}: holds no array of samples and its rate in Hz ({error})") from error
        if source.get("path"):
            return Path(source["path"])
        raise AudioError(
            f"{name}: a mapping with {', '.join(map(str, source)) or 'no keys'}; "
            "expected 'bytes', 'path', or 'array' and 'sampling_rate'"
        )
    return Path(source).expanduser() if isinstance(source, (str, Path)) else source


def _frames(
    content: NDArray[Any] | tuple[NDArray[Any], int], sampling_rate: int, name: str
) -> tuple[NDArray[np.float32], int]:
    """``(samples, channels)`` float32 of an array, and its rate."""
    array, rate = content if isinstance(content, tuple) else (content, sampling_rate)
    array = np.asarray(array)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name}: its sampling rate is {rate} Hz; expected {MIN_RATE} to {MAX_RATE} Hz")
    if array.ndim not in (1, 2):
        raise AudioError(f"{name}: an array of shape {array.shape}; expected (samples,), or (samples, channels)")
    if array.ndim == 1:
        array = array[:, None]
    elif array.shape[0] < array.shape[1]:
        array = array.T
    if array.dtype == np.int64:
        raise AudioError(
            f"{name}: an array of int64, which has no full scale of sound; expected floats of at most 1, or int16 or "
            "int32 (array.astype(numpy.int16))"
        )
    if np.issubdtype(array.dtype, np.signedinteger):
        return array.astype(np.float32) / -float(np.iinfo(array.dtype).min), rate
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"{name}: an array of {array.dtype}; expected floats or signed integers")
    with np.errstate(over="ignore"):  # becomes infinite, which decode_audio reports
        return array.astype(np.float32), rate


def _mix(frames: NDArray[np.float32]) -> Waveform:
    """The mean of the channels."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are reported by name
        waveform: Waveform = frames.mean(axis=1, dtype=np.float32) if frames.shape[1] > 1 else frames[:, 0]
    return waveform
