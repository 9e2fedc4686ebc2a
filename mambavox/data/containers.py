"""What a file holds by its own bytes: mp3 frames, the length in a FLAC's header, bytes that no chunk of a wav owns."""

import io
import math
import mmap
import re
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from mambavox.errors import AudioError

Buffer = bytes | mmap.mmap
"""A file's content."""

_UNSTATED = 0  # bytes; libmpg123 counts an mp3's frames where it cannot guess their number from the size
_LAYERS = {3: 1, 2: 2, 1: 3}
_BIT_RATES = {  # kbit/s by version (1, or 2 with 2.5) and layer, from index 1
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
_RATE_DIVISORS = {3: 1, 2: 2, 0: 4}  # MPEG 1, 2, 2.5
_OGG_BEGINNING = b"OggS\0\2"
_STREAMED = 0x7FFF_0000  # bytes; from here on a wav's data size is a streaming writer's placeholder
_TO_THE_END = 0xFFFF_FFFF
_SMALL_HEAD = 8  # bytes of a chunk's name and size of 32 bits
_FILLING = 1 << 16  # bytes looked at behind the last chunk
_NIST_HEAD = 1024
_NIST_WORDS = (b"sample_count", b"channel_count", b"sample_n_bytes")
_TAIL_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")


class Stretches(io.RawIOBase):
    """Some stretches of a file, read as if they were a file of their own.

    Args:
        content: the file.
        stretches: first byte and byte behind the last of each.
        size: what is said of the size; default the truth.
    """

    def __init__(self, content: Buffer, stretches: Sequence[tuple[int, int]], size: int | None = None) -> None:
        super().__init__()
        self._content, self._stretches = content, [*stretches]
        self._ends = list(accumulate(end - start for start, end in stretches))
        self._size = self._ends[-1] if size is None else size
        self._place = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a byte."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """The byte that is read next."""
        return self._place

    def seekable(self) -> bool:
        """It is."""
        return True

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill as much of a buffer as there is."""
        target = memoryview(buffer).cast("B")
        done, number = 0, bisect_right(self._ends, self._place)
        while done < len(target) and number < len(self._ends):
            end = self._stretches[number][1]
            first = end - (self._ends[number] - self._place)
            piece = self._content[first : min(end, first + len(target) - done)]
            target[done : done + len(piece)] = piece
            done += len(piece)
            self._place += len(piece)
            number += 1
        return done


class _Frame(NamedTuple):
    """What an mp3 frame's four opening bytes say."""

    kind: tuple[int, int, int, bool]  # version, layer, rate in Hz, mono
    size: int
    samples: int


def _frame_at(content: Buffer, place: int) -> _Frame | None:
    head = content[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version_bits, layer_bits = head[1] >> 3 & 3, head[1] >> 1 & 3
    rate_index, bit_rate_index = head[2] >> 2 & 3, head[2] >> 4
    if version_bits == 1 or layer_bits == 0 or rate_index == 3 or not 1 <= bit_rate_index <= 14:
        return None
    version, layer = (1 if version_bits == 3 else 2), _LAYERS[layer_bits]
    rate = _RATES[rate_index] // _RATE_DIVISORS[version_bits]
    bits = _BIT_RATES[version, layer][bit_rate_index - 1] * 1000
    padding = head[2] >> 1 & 1
    if layer == 1:
        size, samples = (12 * bits // rate + padding) * 4, 384
    else:
        samples = 576 if layer == 3 and version == 2 else 1152
        size = samples // 8 * bits // rate + padding
    return _Frame((version, layer, rate, head[3] >> 6 == 3), size, samples)


def _stated_frames(content: Buffer, place: int, frame: _Frame) -> int | None:
    """Frames that an mp3's tag frame says to follow, 0 where it does not say; ``None`` where the frame is sound."""
    version, _, _, mono = frame.kind
    body = content[place : place + frame.size]
    tag = 4 + {(1, False): 32, (1, True): 17, (2, False): 17, (2, True): 9}[version, mono]
    if body[tag : tag + 4] in (b"Xing", b"Info"):
        (flags, frames) = struct.unpack(">II", body[tag + 4 : tag + 12].ljust(8, b"\0"))
        return int(frames) if flags & 1 else 0
    if body[36:40] == b"VBRI":
        return int.from_bytes(body[50:54], "big")
    return None


@dataclass
class Mp3Piece:
    """A stretch of an mp3 that was one file once: a frame that states the length, and sound, or sound alone.

    Attributes:
        stated: frames that its tag states; ``None`` without a tag, or where it does not say.
        frames: frames of sound that are there.
        samples: of each frame.
        tag: bytes of the tag frame.
        sound: bytes of the frames of sound.
    """

    stated: int | None
    frames: int
    samples: int
    tag: list[tuple[int, int]]
    sound: list[tuple[int, int]]

    def open(self, content: Buffer) -> Stretches:
        """A file that libsndfile reads to its true end."""
        if self.stated == self.frames:
            return Stretches(content, [*self.tag, *self.sound])
        return Stretches(content, self.sound, _UNSTATED)

    def add(self, start: int, end: int) -> None:
        """Append a frame of sound."""
        self.frames += 1
        if self.sound and self.sound[-1][1] == start:
            self.sound[-1] = (self.sound[-1][0], end)
        else:
            self.sound.append((start, end))


def is_mp3(content: Buffer) -> bool:
    """Whether a file, behind tags, begins with mp3 frames."""
    place = skip_id3(content)
    frame = _frame_at(content, place)
    return frame is not None and _is_followed(content, place, frame)


def mp3_pieces(content: Buffer, name: str) -> list[Mp3Piece]:
    """Every frame of an mp3, by the files that were joined to make it.

    The length that an mp3 states is that of its first part, or a guess from its first frame's bit rate.

    Args:
        content: the mp3.
        name: what error messages call it.

    Returns:
        The pieces with sound; none where no frame is found.

    Raises:
        AudioError: the rate or the number of channels changes, something else than tags lies between frames, or a
            piece has fewer frames than its tag states.
    """
    pieces: list[Mp3Piece] = []
    kind = None
    place, size = skip_id3(content), len(content)
    while place < size:
        frame = _frame_at(content, place)
        if frame is None or place + frame.size > size or (kind is None and not _is_followed(content, place, frame)):
            found = _next_frame(content, place, kind)
            if found < size and kind is not None and not _is_tag(content, place):
                raise AudioError(f"{name}: is damaged at byte {place} of {size}; copy or convert it again")
            place = found
            continue
        if kind is not None and frame.kind != kind:
            raise AudioError(
                f"{name}: goes on at {frame.kind[2]} Hz and {'one channel' if frame.kind[3] else 'two channels'} from "
                f"byte {place}, where it began at {kind[2]} Hz and {'one' if kind[3] else 'two'}; convert its parts "
                "apart, or all of it, e.g. ffmpeg -i FILE FILE.flac"
            )
        kind = frame.kind
        stated = _stated_frames(content, place, frame)
        end = place + frame.size
        if stated is not None:
            pieces.append(Mp3Piece(stated or None, 0, frame.samples, [(place, end)], []))
        else:
            if not pieces:
                pieces.append(Mp3Piece(None, 0, frame.samples, [], []))
            pieces[-1].add(place, end)
        place = end
    for piece in pieces:
        if piece.stated is not None and piece.frames < piece.stated and kind is not None:
            raise AudioError(
                f"{name}: is cut off after {piece.frames * piece.samples / kind[2]:.2f} s, before the end its header "
                "states; copy it again, or convert it to keep what is there"
            )
    return [piece for piece in pieces if piece.frames]


def _is_followed(content: Buffer, place: int, frame: _Frame) -> bool:
    """Whether another frame of the kind follows, so that these are no bytes that look like a frame."""
    following = _frame_at(content, place + frame.size)
    return place + frame.size == len(content) or (following is not None and following.kind == frame.kind)


def _next_frame(content: Buffer, place: int, kind: tuple[int, int, int, bool] | None) -> int:
    """Where the next frame begins, behind tags; the content's size where there is none."""
    size = len(content)
    if content[place : place + 3] == b"ID3":
        return min(size, skip_id3(content, place))
    if content[place : place + 3] == b"TAG" and (place + 128 == size or _frame_at(content, place + 128)):
        return place + 128
    found = content.find(b"\xff", place + 1)
    while found >= 0:
        frame = _frame_at(content, found)
        if frame is not None and (kind is None or frame.kind == kind) and _is_followed(content, found, frame):
            return found
        found = content.find(b"\xff", found + 1)
    return size


def _is_tag(content: Buffer, place: int) -> bool:
    """Whether what begins here is no sound: a tag, or filling."""
    return any(content[place : place + len(tag)] == tag for tag in _TAIL_TAGS) or content[place : place + 4] == bytes(4)


def skip_id3(content: Buffer, place: int = 0) -> int:
    """Where the sound begins behind tags (pictures among them) that may open it."""
    while content[place : place + 3] == b"ID3" and len(head := content[place : place + 10]) == 10:
        # Seven bits a byte; a footer repeats the head.
        size = sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        place += 10 + size + (10 if head[5] & 16 else 0)
    return place


def flac_length(content: Buffer) -> tuple[int, io.RawIOBase] | None:
    """What a FLAC's header states and the same file with a header that states nothing, so that all of it is decoded.

    Args:
        content: the FLAC.

    Returns:
        Number of samples, 0 where it is not known, and the file; ``None`` where it is no FLAC.
    """
    start = skip_id3(content)
    if content[start : start + 4] != b"fLaC":
        return None
    place = start + 21  # four bits behind the sample size's last
    head = bytearray(content[: place + 5])
    if len(head) < place + 5:
        return None
    stated = int.from_bytes(head[place:], "big") & ((1 << 36) - 1)
    head[place] &= 0xF0
    head[place + 1 :] = bytes(4)
    return stated, _Patched(content, bytes(head))


class _Patched(Stretches):
    """A file with another opening."""

    def __init__(self, content: Buffer, head: bytes) -> None:
        super().__init__(content, [(0, len(content))])
        self._head = head

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill as much of a buffer as there is."""
        start = self._place
        done = super().readinto(buffer)
        if start < len(self._head):
            piece = self._head[start : start + done]
            memoryview(buffer).cast("B")[: len(piece)] = piece
        return done


def is_chained_ogg(content: Buffer) -> bool:
    """Whether ogg files were joined: a stream begins behind pages of another. Only the first would be heard."""
    place = 0
    while content[place : place + 6] == _OGG_BEGINNING:
        segments = content[place + 27 : place + 27 + content[place + 26]] if place + 27 <= len(content) else b""
        place += 27 + len(segments) + sum(segments)
    return place > 0 and content.find(_OGG_BEGINNING, place) >= 0


class _Chunks(NamedTuple):
    """How a container's chunks are laid out."""

    opening: int  # bytes before the first
    word: int  # bytes of a chunk's name
    size: str  # struct of its size
    align: int  # bytes to whose multiple the next is moved
    included: int  # bytes of its own head that a size counts


_CONTAINERS = {
    b"RIFF": _Chunks(12, 4, "<I", 2, 0),
    b"RF64": _Chunks(12, 4, "<I", 2, 0),
    b"RIFX": _Chunks(12, 4, ">I", 2, 0),
    b"FORM": _Chunks(12, 4, ">I", 2, 0),
    b"caff": _Chunks(8, 4, ">q", 1, 0),
    b"riff": _Chunks(40, 16, "<q", 8, 24),
}


class Sound(NamedTuple):
    """Where a container without compression of its own says that its sound lies.

    Attributes:
        present: bytes of sound that are there.
        missing: bytes that its header states and that are not there.
        surplus: bytes behind it that belong to nothing the header states: where a header states too little, and where
            files were joined, sound that nobody would hear.
    """

    present: int
    missing: int
    surplus: int


def stated_sound(content: Buffer) -> Sound | None:
    """Compare what a wav, aiff, caf, w64, rf64, au or sph states with the bytes that it has; ``None`` for others."""
    size, magic = len(content), bytes(content[:4])
    if magic in (b".snd", b"dns."):
        first, length = struct.unpack(">II" if magic == b".snd" else "<II", content[4:12].ljust(8, b"\0"))
        return Sound(size - first, 0, 0) if length == _TO_THE_END else _compare(first, length, size)
    if magic == b"NIST":
        return _nist_sound(bytes(content[:_NIST_HEAD]), size)
    if magic in _CONTAINERS:
        return _chunked_sound(content, _CONTAINERS[magic])
    return None


def _compare(first: int, length: int, size: int) -> Sound:
    present = max(0, min(length, size - first))
    return Sound(present, length - present, max(0, size - first - length))


def _nist_sound(head: bytes, size: int) -> Sound | None:
    numbers = [re.search(rb"\b%s -i (\d{1,12})\b" % word, head) for word in _NIST_WORDS]
    first = re.match(rb"NIST_1A\n *(\d{1,6})\n", head)
    if first is None or None in numbers or b"shorten" in head:
        return None
    length = math.prod(int(number[1]) for number in numbers if number is not None)
    return _compare(int(first[1]), length, size)


def _chunked_sound(content: Buffer, layout: _Chunks) -> Sound | None:
    size, place = len(content), layout.opening
    head = layout.word + struct.calcsize(layout.size)
    long_size, sound = None, None
    while place + head <= size:
        word = bytes(content[place : place + 4])
        if not all(32 <= byte < 127 for byte in word) or word in _CONTAINERS:
            break
        (length,) = struct.unpack(layout.size, content[place + layout.word : place + head])
        if word == b"ds64":
            (long_size,) = struct.unpack("<Q", content[place + head + 8 : place + head + 16].ljust(8, b"\0"))
        length -= layout.included
        if word in (b"data", b"SSND"):
            if length == _TO_THE_END and long_size is not None:
                length = long_size
            if length < 0 or (head == _SMALL_HEAD and _STREAMED <= length <= _TO_THE_END):
                return Sound(size - place - head, 0, 0)  # a streaming writer's placeholder
            sound = _compare(place + head, length, size)
        following = place + head + length
        if following > size or length < 0:
            break
        padding = -following % layout.align if layout.included else length % layout.align
        if padding == 1 and content[following : following + 1] not in (b"\0", b""):
            padding = 0  # written without the byte that makes it even
        place = following + padding
    if sound is None or sound.missing:
        return sound
    rest = bytes(content[place : min(size, place + _FILLING)])
    return sound._replace(surplus=0 if rest.startswith(_TAIL_TAGS) or not any(rest) else size - place)
