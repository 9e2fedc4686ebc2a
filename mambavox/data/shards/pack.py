"""Pack recordings into tars, shard by shard; what was packed is never packed again."""

import io
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile

from mambavox.data.audio import (
    AUDIO_SUFFIXES,
    READABLE_SUFFIXES,
    SAMPLING_RATE,
    AudioSegment,
    Waveform,
    quantise,
)
from mambavox.data.checks import AudioProblem
from mambavox.data.columns import AUDIO_COLUMNS
from mambavox.data.example import Example
from mambavox.data.keys import path_keys
from mambavox.data.shards.index import ShardIndex, index_path, to_index, unusable
from mambavox.data.splits import parts_by_split
from mambavox.errors import AudioError, ConfigError, DataError
from mambavox.files import is_empty, replacing, to_json, write_atomically

PACKING_FILE = "shards.json"
"""What a folder of shards is packed from."""

_AHEAD = 32  # recordings read and not yet written
_BLOCK = 512  # bytes, in which tars count
_UNNAMED = "shard"
_STRANGE = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class Packing:
    """What a folder of shards is packed from: it is continued only by the same.

    Attributes:
        recordings: number of recordings.
        digest: of their keys in order.
        audio: how they are stored.
        shard_bytes: of recordings in a tar, at least, but for the last.
        cut_seconds: longest piece into which a recording is cut; ``None``: none is.
        seed: of their order; ``None``: as given.
        finished: whether all are packed.
    """

    recordings: int
    digest: str
    audio: str
    shard_bytes: int
    cut_seconds: float | None
    seed: int | None
    finished: bool

    def save(self, folder: Path) -> None:
        """Write ``shards.json``, at once."""
        write_atomically(folder / PACKING_FILE, to_json(asdict(self)))


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        tars: number of tars.
        recordings: in them.
        hours: of speech.
        gigabytes: of the tars.
        left_out: recordings that could not be used.
    """

    tars: int
    recordings: int
    hours: float
    gigabytes: float
    left_out: list[AudioProblem]


class _Item(NamedTuple):
    """A recording to be packed."""

    name: str
    content: bytes
    samples: int
    fields: bytes


def make_shards(
    examples: Sequence[Example],
    folder: Path,
    *,
    shard_bytes: int = 1_000_000_000,
    audio: Literal["flac", "keep"] = "flac",
    cut_seconds: float | None = None,
    seed: int | None = 0,
    on_error: Literal["raise", "skip"] = "raise",
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Pack recordings into tars that WebDataset reads too, or continue where an earlier call was stopped.

    A recording is two members, ``a/b.flac`` and ``a/b.json`` (its fields, ``samples`` and ``sampling_rate``), named by
    its key with dots replaced. Where recordings have a column ``split``, each part has tars of its own,
    ``train-000000.tar`` and so on; else they are ``shard-000000.tar``. Beside each tar lies its index. A tar is
    complete or not there.

    Args:
        examples: the recordings.
        folder: where to.
        shard_bytes: size of a tar, at least, but for the last.
        audio: ``"flac"``: mono, 16 kHz, 16 bits; ``"keep"``: files stay as they are, and what is no file becomes flac.
        cut_seconds: cut longer recordings into equal pieces of at most that length, ``a/b_0000.flac`` and so on, since
            a recording is decoded whole for each crop; ``None`` cuts none.
        seed: of the order in which they are packed, so that a few tars hold many speakers; ``None`` keeps the order.
        on_error: about recordings that cannot be used: raise an error that names the first, or leave them out and list
            them in the index.
        num_workers: threads; default one a core, at most 8.
        progress: called with the numbers of recordings done and in all.

    Raises:
        ConfigError: an argument is out of its range.
        DataError: the folder holds something else, two recordings would have the same name, or the column ``split``
            has unknown words.
        AudioError: a recording cannot be used and ``on_error`` is ``"raise"``; the tars before are kept.
    """
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes={shard_bytes}; expected at least 1")
    if cut_seconds is not None and not cut_seconds > 0:
        raise ConfigError(f"cut_seconds={cut_seconds:g}; expected above 0")
    if not len(examples):
        raise DataError("there are no recordings to pack; expected at least one")
    keys = path_keys(examples)
    order = np.arange(len(keys)) if seed is None else np.random.default_rng(seed).permutation(len(keys))
    digest = blake2b("\n".join(keys).encode(), digest_size=16).hexdigest()
    packing = Packing(len(keys), digest, audio, shard_bytes, cut_seconds, seed, finished=False)
    parts, names = parts_by_split(examples), _member_names(keys)  # what is wrong is told before anything is written
    _begin(folder, packing)
    groups: dict[str, list[int]] = {}
    for place in order.tolist():
        groups.setdefault(parts[place] if parts else _UNNAMED, []).append(place)
    made: list[ShardIndex] = []
    with ThreadPoolExecutor(num_workers or min(os.cpu_count() or 1, 8)) as pool:
        for part, places in sorted(groups.items()):
            before = [ShardIndex.load(path) for path in _complete(folder, part)]
            made += before
            done = sum(len(others) for other, others in sorted(groups.items()) if other < part)
            taken = before[-1].taken if before else 0
            if taken > len(places):
                raise DataError(f"{folder}: its {part} tars hold more recordings than were given; give a new folder")

            def work(place: int) -> list[_Item] | AudioProblem:
                return _items(examples[place], names[place], audio, cut_seconds)

            recordings = _ahead(pool, work, places[taken:])
            number = len(before)
            while taken < len(places):
                index = _write(folder / f"{part}-{number:06d}.tar", recordings, shard_bytes, taken, on_error, len(keys))
                taken, number = index.taken, number + 1
                made.append(index)
                if progress is not None:
                    progress(done + taken, len(keys))
    Packing(**{**asdict(packing), "finished": True}).save(folder)
    return Packed(
        tars=len(made),
        recordings=sum(len(index.keys) for index in made),
        hours=float(sum(int(index.samples.sum()) for index in made)) / SAMPLING_RATE / 3600,
        gigabytes=sum(index.tar_bytes for index in made) / 1e9,
        left_out=[problem for index in made for problem in index.left_out],
    )


def _begin(folder: Path, packing: Packing) -> None:
    """Make the folder ready, or check that it was begun with the same recordings."""
    file = folder / PACKING_FILE
    if file.is_file():
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{file}: is damaged ({error}); give a new folder") from error
        now = asdict(packing)
        changes = [
            f"{name} was {before.get(name)} and is {now[name]}"
            for name in now
            if name != "finished" and before.get(name) != now[name]
        ]
        if changes:
            raise DataError(
                f"{folder}: holds shards of other recordings or settings: {', '.join(changes)}; leave them as they "
                "were, which continues, or give a new folder"
            )
        return
    if folder.is_dir() and not is_empty(folder):
        raise DataError(f"{folder}: is not empty and holds no shards ({PACKING_FILE}); expected a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    packing.save(folder)


def _complete(folder: Path, part: str) -> list[Path]:
    """Tars of a split that are complete: those before the first without an index."""
    found: list[Path] = []
    while index_path(folder / f"{part}-{len(found):06d}.tar").is_file():
        found.append(folder / f"{part}-{len(found):06d}.tar")
    return found


def _member_names(keys: Sequence[str]) -> list[str]:
    """Paths inside the tar, without endings: WebDataset takes what follows the first dot for the ending."""
    names = []
    for key in keys:
        path = PurePosixPath(_STRANGE.sub("_", key))
        stem = path.stem if path.suffix.lower() in AUDIO_SUFFIXES else path.name
        folders = [piece for piece in path.parent.parts if piece not in ("/", "..", ".")]
        names.append("/".join([*folders, stem.replace(".", "_")]))
    if len(set(names)) < len(names):
        seen: dict[str, str] = {}
        for key, name in zip(keys, names, strict=True):
            if name in seen:
                raise DataError(
                    f"{seen[name]!r} and {key!r} would both be {name!r} in a tar, where dots end a name; rename one"
                )
            seen[name] = key
    return names


def _items(example: Example, name: str, audio: str, cut_seconds: float | None) -> list[_Item] | AudioProblem:
    """What is written of a recording, which is decoded either way, so that nothing broken is packed."""
    try:
        waveform = example.read()
    except AudioError as error:
        return AudioProblem(example.name, str(error))
    count = 1 if cut_seconds is None else -(-len(waveform) // max(1, round(cut_seconds * SAMPLING_RATE)))
    stored = _stored(example) if audio == "keep" and count == 1 else None
    fields = {column: value for column, value in example.fields.items() if column not in AUDIO_COLUMNS}
    items, first = [], 0
    begin = example.audio.start if isinstance(example.audio, AudioSegment) else 0.0
    for number, piece in enumerate(np.array_split(waveform, count)):
        content, suffix = stored or (_flac(piece), ".flac")
        about = {**fields, "samples": len(piece), "sampling_rate": SAMPLING_RATE}
        if count > 1:
            about["start"] = begin + first / SAMPLING_RATE
        text = json.dumps(about, ensure_ascii=False, default=str).encode()
        place = f"{name}_{number:04d}" if count > 1 else name
        items.append(_Item(place + suffix, content, len(piece), text))
        first += len(piece)
    return items


def _flac(waveform: Waveform) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, quantise(waveform), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _stored(example: Example) -> tuple[bytes, str] | None:
    """A recording's file and its ending; ``None`` where it is none."""
    if isinstance(example.audio, Path):
        suffix = example.audio.suffix.lower()
        return (example.audio.read_bytes(), suffix) if suffix in READABLE_SUFFIXES else None
    source = example.source
    content = source.get("bytes") if isinstance(source, Mapping) else source
    if not isinstance(content, bytes):
        return None
    kind = soundfile.info(io.BytesIO(content)).format.lower()
    suffix = {"wavex": ".wav", "mpeg": ".mp3"}.get(kind, f".{kind}")
    return (content, suffix) if suffix in READABLE_SUFFIXES else None


def _write(
    tar: Path,
    recordings: Iterator[list[_Item] | AudioProblem],
    shard_bytes: int,
    taken: int,
    on_error: Literal["raise", "skip"],
    number: int,
) -> ShardIndex:
    """Write one tar and its index, at once."""
    rows: list[tuple[str, int, int, int]] = []
    fields: list[tuple[int, int]] = []
    left_out: list[AudioProblem] = []
    with replacing(tar, sync=True) as partial:
        with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
            for items in recordings:
                taken += 1
                if isinstance(items, AudioProblem):
                    if on_error == "raise":
                        raise AudioError(unusable([items], number, str(tar.parent)))
                    left_out.append(items)
                    continue
                for item in items:
                    start = _add(archive, item.name, item.content)
                    beside = _add(archive, item.name.rpartition(".")[0] + ".json", item.fields)
                    rows.append((item.name, start, len(item.content), item.samples))
                    fields.append((beside, len(item.fields)))
                if archive.offset >= shard_bytes:
                    break
        index = to_index(rows, fields, partial.stat().st_size, left_out, taken)
    index.save(index_path(tar))
    return index


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a file; the byte at which it begins."""
    member = tarfile.TarInfo(name)  # no time and no owner: the same recordings make the same tar
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
    return archive.offset - -(-len(content) // _BLOCK) * _BLOCK


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[int], Any], places: Sequence[int]
) -> Iterator[list[_Item] | AudioProblem]:
    """``pool.map`` with few results waiting."""
    waiting: deque[Future[Any]] = deque()
    try:
        for place in places:
            waiting.append(pool.submit(work, place))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
