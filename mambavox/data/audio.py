"""Read recordings: any common file or array becomes a mono float32 waveform at one sampling rate."""

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

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

AudioSource: TypeAlias = str | Path | bytes | NDArray[Any] | tuple[NDArray[Any], int] | Mapping[str, Any]
"""Whatever ``read_audio`` reads."""

_FORMATS = "wav, flac, ogg (Vorbis or Opus) and mp3"
_BLOCK = 1 << 20  # frames a read: a header that promises an absurd length must not claim the memory for it
_HEADER_TOLERANCE = 0.01  # seconds; some writers' wav headers are a few bytes off
_STREAMED_WAV = 0x7FFF_0000  # bytes; from here on a data size is a streaming writer's placeholder
_MP3_HEAD = 1 << 12  # bytes behind the tags in which an mp3's first frame states the length, if it does


def read_audio(source: AudioSource, sampling_rate: int = SAMPLING_RATE, *, name: str | None = None) -> Waveform:
    """Read a recording as a mono waveform at one sampling rate.

    Files are read by libsndfile (wav, flac, ogg, mp3), channels are averaged, and soxr resamples.

    Args:
        source: a file's path; a file's bytes; an array ``(samples,)`` or two-dimensional with the channels on its
            shorter axis, already at ``sampling_rate``; ``(array, its rate in Hz)``; or a mapping in the form of
            ``datasets``: ``{"bytes", "path"}`` or ``{"array", "sampling_rate"}``. Integer arrays are scaled by
            their type's full scale.
        sampling_rate: Hz wanted.
        name: what error messages call the recording; default its path.

    Returns:
        ``(samples,)`` float32 at ``sampling_rate``.

    Raises:
        AudioError: the file is missing, not a recording, corrupt, or cut off; the recording has no samples, or
            values that are NaN or infinite.
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
    if isinstance(content, (Path, bytes)):
        frames, rate = _read_file(content, name)
    else:
        frames, rate = _frames(content, sampling_rate, name)
    if not len(frames):
        raise AudioError(f"{name}: has no samples; expected a recording with sound")
    waveform = _mix(frames)
    if not np.isfinite(waveform).all():
        bad = np.flatnonzero(~np.isfinite(waveform))
        raise AudioError(
            f"{name}: {len(bad)} of {len(waveform)} samples are NaN or infinite, "
            f"the first at {bad[0] / rate:.3f} s; record or convert it again"
        )
    return waveform, rate


def quantise(waveform: Waveform) -> NDArray[np.int16]:
    """Samples with 16 bits, as most recordings are stored."""
    return np.clip(np.rint(waveform * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def dequantise(samples: NDArray[np.integer]) -> Waveform:
    """What :func:`quantise` was given, but for rounding."""
    return samples.astype(np.float32) / np.float32(FULL_SCALE)


def read_blocks(path: str | Path, sampling_rate: int = SAMPLING_RATE, seconds: float = 5.0) -> Iterator[Waveform]:
    """Read a recording of any length block by block; end to end they are what ``read_audio`` reads.

    Memory does not grow with the recording's length. Some errors are only found at its end.

    Args:
        path: the file.
        sampling_rate: Hz wanted.
        seconds: length of a block.

    Yields:
        ``(samples,)`` float32 at ``sampling_rate``, about ``seconds`` of them, at least one.

    Raises:
        AudioError: see :func:`read_audio`.
    """
    content, name = Path(path).expanduser(), str(path)
    with _open(content, name) as file:
        rate = file.samplerate
        resampler = None if rate == sampling_rate else soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32")
        read = made = 0
        for frames in _file_blocks(file, max(1, round(seconds * rate)), name):
            block = _mix(frames)
            if not np.isfinite(block).all():
                bad = np.flatnonzero(~np.isfinite(block))
                raise AudioError(
                    f"{name}: some samples are NaN or infinite, the first at {(read + bad[0]) / rate:.3f} s; record or "
                    "convert it again"
                )
            read += len(block)
            if resampler is not None:
                block = resampler.resample_chunk(block)
            made += len(block)
            if len(block):
                yield block
        _check_end(file, read, content, name)
        if not read:
            raise AudioError(f"{name}: has no samples; expected a recording with sound")
        if resampler is not None:
            block = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
            if not made + len(block):
                raise AudioError(f"{name}: its {read} samples at {rate} Hz make none at {sampling_rate} Hz")
            if len(block):
                yield block


def duration(source: AudioSource) -> float:
    """Seconds of a recording, from its header, without decoding.

    The mp3 format does not oblige a writer to state the length; without it this is an estimate.

    Args:
        source: see :func:`read_audio`; an array without a rate counts as at ``SAMPLING_RATE``.

    Raises:
        AudioError: the file is missing or is not a recording.
    """
    name = _name_of(source, None)
    content = _content(source, name)
    if isinstance(content, (Path, bytes)):
        with _open(content, name) as file:
            return float(file.frames / file.samplerate)
    frames, rate = _frames(content, SAMPLING_RATE, name)
    return len(frames) / rate


def _name_of(source: AudioSource, name: str | None) -> str:
    if name is not None:
        return name
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, Mapping) and source.get("path"):
        return str(source["path"])
    return "a recording given as " + ("bytes" if isinstance(source, bytes) else "an array")


def _content(source: AudioSource, name: str) -> Path | bytes | NDArray[Any] | tuple[NDArray[Any], int]:
    """Reduce the forms of a source to a file, its bytes, or an array."""
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return bytes(source["bytes"])
        if source.get("array") is not None and source.get("sampling_rate") is not None:
            return np.asarray(source["array"]), int(source["sampling_rate"])
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
    if rate < 1:
        raise AudioError(f"{name}: its sampling rate is {rate} Hz; expected a positive one")
    if array.ndim not in (1, 2):
        raise AudioError(f"{name}: an array of shape {array.shape}; expected (samples,), or (samples, channels)")
    if array.ndim == 1:
        array = array[:, None]
    elif array.shape[0] < array.shape[1]:
        array = array.T
    if np.issubdtype(array.dtype, np.signedinteger):
        return array.astype(np.float32) / -float(np.iinfo(array.dtype).min), rate
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"{name}: an array of {array.dtype}; expected floats or signed integers")
    with np.errstate(over="ignore"):  # becomes infinite, which decode_audio reports
        return array.astype(np.float32), rate


class _SequentialFile(soundfile.SoundFile):
    """A file that is only read on and on.

    soundfile seeks behind each block that it has read, to where it is; an mp3 decoder loses there what the next frame
    builds upon, and gives other samples.
    """

    def seekable(self) -> bool:
        return False


def _open(content: Path | bytes, name: str) -> soundfile.SoundFile:
    if isinstance(content, Path):
        if content.is_dir():
            raise AudioError(f"{name}: is a folder; expected an audio file")
        if not content.is_file():
            raise AudioError(f"{name}: no such file")
    if not (content if isinstance(content, bytes) else content.stat().st_size):
        raise AudioError(f"{name}: is empty (0 bytes)")
    try:
        return _SequentialFile(io.BytesIO(content) if isinstance(content, bytes) else content)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless .raw
        raise AudioError(
            f"{name}: is not a readable recording ({_reason(error)}); the formats read are {_FORMATS}. "
            "If it plays elsewhere, convert it, e.g. ffmpeg -i FILE FILE.flac"
        ) from error


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return text.rstrip(".")


def _read_file(content: Path | bytes, name: str) -> tuple[NDArray[np.float32], int]:
    """``(samples, channels)`` float32 of a file, and its rate."""
    with _open(content, name) as file:
        blocks = list(_file_blocks(file, _BLOCK, name))
        frames = np.concatenate(blocks) if blocks else np.zeros((0, file.channels), np.float32)
        _check_end(file, len(frames), content, name)
        return frames, file.samplerate


def _file_blocks(file: soundfile.SoundFile, size: int, name: str) -> Iterator[NDArray[np.float32]]:
    """``(samples, channels)`` of a file, at most ``size`` samples at a time."""
    try:
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            yield block
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: is corrupt or cut off ({_reason(error)}); copy or convert it again") from error


def _mix(frames: NDArray[np.float32]) -> Waveform:
    """The mean of the channels."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are reported by name
        waveform: Waveform = frames.mean(axis=1, dtype=np.float32) if frames.shape[1] > 1 else frames[:, 0]
    return waveform


def _check_end(file: soundfile.SoundFile, num_frames: int, content: Path | bytes, name: str) -> None:
    if _is_cut_off(file, num_frames, content):
        raise AudioError(
            f"{name}: is cut off after {num_frames / file.samplerate:.2f} s, before the end its header states; "
            "copy it again, or convert it to keep what is there"
        )


def _is_cut_off(file: soundfile.SoundFile, num_frames: int, content: Path | bytes) -> bool:
    """Whether a file ends before its own end; libsndfile reads what is left and only notes it in its log."""
    if file.format in ("WAV", "WAVEX", "AIFF"):
        sizes = re.search(r"\b(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", file.extra_info)
        if not sizes:
            return False
        stated, present = map(int, sizes.groups())
        missing = (stated - present) / max(present, 1) * num_frames / file.samplerate
        return stated < _STREAMED_WAV and missing > _HEADER_TOLERANCE
    if file.format == "OGG":
        return re.search(r"lacks an end-of-stream bit|Junk after the last page", file.extra_info) is not None
    if file.format == "MP3" and num_frames < file.frames:
        # Without one of these tags the number of frames is a guess from the first frame's bit rate.
        head = _mp3_head(content)
        return b"Xing" in head or b"Info" in head
    return num_frames < file.frames


def _mp3_head(content: Path | bytes) -> bytes:
    """What lies behind the tags, pictures among them, that may open an mp3."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        opening = file.read(10)
        skipped = 0
        if opening[:3] == b"ID3" and len(opening) == 10:
            # Seven bits a byte.
            skipped = 10 + sum(byte << shift for byte, shift in zip(opening[6:], (21, 14, 7, 0), strict=True))
        file.seek(skipped)
        return file.read(_MP3_HEAD)
