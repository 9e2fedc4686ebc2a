"""Decode a file to its true end, whatever its header says."""

import io
import mmap
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from mambavox.data.containers import (
    Buffer,
    Mp3Piece,
    Sound,
    flac_length,
    is_chained_ogg,
    is_mp3,
    mp3_pieces,
    stated_sound,
)
from mambavox.errors import AudioError

MIN_RATE, MAX_RATE = 1_000, 1_000_000
"""Hz; a recording of another rate is refused, for at 16 kHz it would take memory without bounds."""

MAX_HOURS = 24
"""Length of what is read at once; longer recordings are read in blocks."""

_FORMATS = "wav, flac, ogg (Vorbis or Opus) and mp3"
_BLOCK = 1 << 20  # values a read: a header that promises an absurd length must not claim the memory for it
_TOLERANCE = 0.01  # seconds; some writers' headers are a few bytes off
_UNKNOWN = 1 << 62  # frames; libsndfile states more where it does not know


class _SequentialFile(soundfile.SoundFile):
    """A file that is only read on and on.

    soundfile seeks behind each block that it has read, to where it is; an mp3 decoder loses there what the next frame
    builds upon, and gives other samples.
    """

    def seekable(self) -> bool:
        return False


class AudioFile:
    """A recording that is being decoded: a context, which closes it.

    libsndfile takes the length from the header: what an mp3 of joined parts holds beyond it is not read, and a FLAC
    that was streamed has none. Here an mp3 is read by its frames and a FLAC to its end.

    Args:
        content: the file, or its bytes.
        name: what error messages call it.

    Attributes:
        rate: Hz.
        channels: number of channels.

    Raises:
        AudioError: it is missing, no recording, of a rate out of bounds, or holds sound that its header does not state.
    """

    def __init__(self, content: Path | bytes, name: str) -> None:
        self.name = name
        self._content = content
        self._closing = ExitStack()
        try:
            self._open(content)
        except BaseException:
            self._closing.close()
            raise

    def _open(self, content: Path | bytes) -> None:
        if isinstance(content, Path):
            if content.is_dir():
                raise AudioError(f"{self.name}: is a folder; expected an audio file")
            if not content.is_file():
                raise AudioError(f"{self.name}: no such file")
        if not (content.stat().st_size if isinstance(content, Path) else content):
            raise AudioError(f"{self.name}: is empty (0 bytes)")
        try:
            self._buffer: Buffer
            self._buffer = self._closing.enter_context(_mapped(content)) if isinstance(content, Path) else content
        except OSError as error:
            raise AudioError(f"{self.name}: cannot be read ({error.strerror or error})") from error
        self._pieces: list[Mp3Piece] = []
        self._sound: Sound | None = None
        flac = flac_length(self._buffer)
        if is_mp3(self._buffer):
            self._file = self._first_piece()
        else:
            self._file = self._decoder(content if flac is None else flac[1])
            if self._file.format == "MP3":  # behind bytes of something else
                self._file.close()
                self._file = self._first_piece()
        self._closing.callback(self._file.close)
        self.rate, self.channels = int(self._file.samplerate), int(self._file.channels)
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise AudioError(
                f"{self.name}: its sampling rate is {self.rate} Hz; expected {MIN_RATE} to {MAX_RATE} Hz. Convert it, "
                "e.g. ffmpeg -i FILE -ar 16000 FILE.wav"
            )
        self._frames: int | None
        if flac is not None:
            self._frames = flac[0] or None
        elif self._pieces:
            self._frames = sum(self._frames_of(piece) for piece in self._pieces)
        else:
            self._frames = int(self._file.frames) if self._file.frames < _UNKNOWN else None
            self._sound = stated_sound(self._buffer)
            self._check_surplus(self._sound)
            if self._file.format == "OGG" and is_chained_ogg(self._buffer):
                raise AudioError(
                    f"{self.name}: holds more recordings behind its first: ogg files were joined; convert it to keep "
                    "all of it, e.g. ffmpeg -i FILE FILE.flac"
                )

    def _first_piece(self) -> soundfile.SoundFile:
        self._pieces = mp3_pieces(self._buffer, self.name)
        if not self._pieces:
            raise AudioError(f"{self.name}: has no samples; expected a recording with sound")
        return self._decoder(self._pieces[0].open(self._buffer))

    def _frames_of(self, piece: Mp3Piece) -> int:
        with self._decoder(piece.open(self._buffer)) as file:
            return int(file.frames)

    def _decoder(self, source: Any) -> soundfile.SoundFile:
        try:
            source = io.BytesIO(source) if isinstance(source, bytes) else source
            return _SequentialFile(source)
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless .raw
            raise AudioError(
                f"{self.name}: is not a readable recording ({_reason(error)}); the formats read are {_FORMATS}. "
                "If it plays elsewhere, convert it, e.g. ffmpeg -i FILE FILE.flac"
            ) from error

    def _check_surplus(self, sound: Sound | None) -> None:
        if sound is None or not self._frames or not sound.present:
            return
        seconds = sound.surplus / sound.present * self._frames / self.rate
        if seconds > _TOLERANCE:
            raise AudioError(
                f"{self.name}: holds {sound.surplus} bytes behind the {self._frames / self.rate:.2f} s that its header "
                "states: files were joined, or its writer was stopped; convert it to keep all of it, e.g. "
                "ffmpeg -i FILE FILE.flac"
            )

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def length(self) -> int:
        """Samples a channel, without decoding where the header can be trusted.

        Raises:
            AudioError: it must be decoded and is corrupt or cut off.
        """
        if self._frames is None:
            self._frames = sum(map(len, self.blocks(_BLOCK)))
        return self._frames

    def blocks(self, size: int) -> Iterator[NDArray[np.float32]]:
        """Read it from beginning to end, once.

        Args:
            size: most samples of a block.

        Yields:
            ``(samples, channels)``.

        Raises:
            AudioError: it is corrupt or cut off, which may only be found at the end.
        """
        read = 0
        size = max(1, min(size, _BLOCK // self.channels))
        for file in self._decoders():
            for block in self._read_on(file, size):
                read += len(block)
                yield block
        self._check_end(read)

    def stretch(self, first: int, last: int | None, size: int) -> Iterator[NDArray[np.float32]]:
        """Read a part of it, once.

        Args:
            first: its first sample.
            last: the one behind its last; ``None``: to the end. What lies beyond the recording is not there.
            size: most samples of a block.

        Yields:
            ``(samples, channels)``.

        Raises:
            AudioError: it is corrupt up to there, or cut off.
        """
        if last is None and not first:
            yield from self.blocks(size)
            return
        place = 0
        last = _UNKNOWN if last is None else last
        # An mp3 decoder that begins in the middle gives other samples.
        if self._frames is not None and not self._pieces:
            last = min(last, self._frames)
            place = min(first, last)
            self._seek(place)
        size = max(1, min(size, _BLOCK // self.channels))
        for file in self._decoders():
            while place < last:
                block = next(self._read_on(file, min(size, (last if place >= first else first) - place)), None)
                if block is None:
                    break
                if place >= first:
                    yield block
                place += len(block)
        if self._frames is not None and place < min(last, self._frames):
            self._check_end(place)

    def _seek(self, place: int) -> None:
        try:
            if place:
                self._file.seek(place)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{self.name}: is corrupt or cut off before {place / self.rate:.2f} s ({_reason(error)}); copy or "
                "convert it again"
            ) from error

    def _decoders(self) -> Iterator[soundfile.SoundFile]:
        yield self._file
        for piece in self._pieces[1:]:
            with self._decoder(piece.open(self._buffer)) as file:
                yield file

    def _read_on(self, file: soundfile.SoundFile, size: int) -> Iterator[NDArray[np.float32]]:
        try:
            while len(block := file.read(size, dtype="float32", always_2d=True)):
                yield block
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{self.name}: is corrupt or cut off ({_reason(error)}); copy or convert it again"
            ) from error

    def _check_end(self, read: int) -> None:
        """Whether it ended before its own end; libsndfile reads what is left and only notes it in its log."""
        stated = self._frames
        seconds = read / self.rate
        if self._sound is not None:
            missing = self._sound.missing / max(self._sound.present, 1) * read / self.rate
            is_cut_off = missing > _TOLERANCE
        elif self._file.format == "OGG":
            notes = self._file.extra_info
            is_cut_off = "lacks an end-of-stream bit" in notes or "Junk after the last page" in notes
        else:
            is_cut_off = False
        if is_cut_off or (stated is not None and read < stated):
            raise AudioError(
                f"{self.name}: is cut off after {seconds:.2f} s, before the end its header states; copy it again, or "
                "convert it to keep what is there"
            )
        if stated is not None and read > stated:
            raise AudioError(
                f"{self.name}: holds {seconds:.2f} s, and its header states {stated / self.rate:.2f} s; convert it, "
                "e.g. ffmpeg -i FILE FILE.flac"
            )


def can_open(content: Path | bytes) -> bool:
    """Whether a file is a recording of a kind that is read, by its beginning.

    Args:
        content: the file, whatever its name, or its first bytes (64 KiB are enough).
    """
    try:
        head = content[:4] if isinstance(content, bytes) else _head(content)
        if head[:3] == b"ID3" or (len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
            # libsndfile takes some text for an mp3, and complains.
            with nullcontext(content) if isinstance(content, bytes) else _mapped(content) as buffer:
                return is_mp3(buffer)
    except OSError:
        return False
    return bool(head) and stated_format(content) is not None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def stated_format(content: Path | bytes) -> tuple[int, int] | None:
    """Rate in Hz and number of channels that a file's header states; ``None`` where it cannot be opened.

    Args:
        content: the file, or its bytes.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
            return int(file.samplerate), int(file.channels)
    except (soundfile.LibsndfileError, TypeError, ValueError, OSError):
        return None


def file_length(content: Path | bytes, name: str) -> tuple[int, int]:
    """Samples of a file, and their rate; what had to be looked through is remembered until the file changes.

    Args:
        content: the file, or its bytes.
        name: what error messages call it.

    Raises:
        AudioError: see :class:`AudioFile`.
    """
    if isinstance(content, Path) and content.is_file():
        about = content.stat()
        return _remembered(content, name, about.st_mtime_ns, about.st_size)
    return _measure(content, name)


@lru_cache(maxsize=1 << 14)
def _remembered(path: Path, name: str, changed: int, size: int) -> tuple[int, int]:
    return _measure(path, name)


def _measure(content: Path | bytes, name: str) -> tuple[int, int]:
    with AudioFile(content, name) as file:
        return file.length(), file.rate


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return text.rstrip(".")
