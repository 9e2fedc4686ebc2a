"""Unit labels of recordings: a folder of shards, in the order of the recordings."""

import json
import os
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mambavox.data import Example
from mambavox.errors import DataError

PLAN_FILE = "targets.json"

_SHARDS = "labels-*.safetensors"
_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class LabelsPlan:
    """What labels are made of: a folder's labels are continued only by the same plan.

    Attributes:
        source: ``"mfcc"`` or ``"MODEL:LAYER"``.
        num_clusters: number of units.
        fraction: of the recordings that the quantizer is fitted on.
        seed: of their choice and of the fit.
        recordings: number of recordings; ``None`` where nobody has counted them.
        recordings_digest: of their keys in order; empty where they are not known beforehand.
        frame_rate: of the labels, frames a second.
        fingerprint: of the weights of the model; empty for MFCC.
        shard_recordings: recordings of a shard.
        batch_seconds: of audio that goes through the model at a time.
        finished: whether all recordings have labels.
    """

    source: str
    num_clusters: int
    fraction: float
    seed: int
    recordings: int | None
    recordings_digest: str
    frame_rate: float
    fingerprint: str
    shard_recordings: int
    batch_seconds: float
    finished: bool

    def save(self, folder: Path) -> None:
        """Write ``targets.json``, at once."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{PLAN_FILE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / PLAN_FILE)

    @classmethod
    def load(cls, folder: Path) -> "LabelsPlan":
        """Read ``targets.json``.

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            content: dict[str, Any] = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
            return cls(**{spec.name: content[spec.name] for spec in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: holds no unit labels ({PLAN_FILE}: {error}); expected a folder that make_targets or "
                "`mambavox units label` wrote"
            ) from error


class UnitLabels(Mapping[str, NDArray[np.int32]]):
    """Labels of recordings by their key (see :func:`recording_keys`).

    Shards are read when first asked for and kept while there is room, so that the labels of 60000 hours can be gone
    through in order, and those of 1000 hours at random. It can be sent to other processes.

    Args:
        folder: where they lie.
        plan: what they are.
        shards: keys and numbers of frames of each shard.
        cache_bytes: memory for shards.

    Attributes:
        folder: where they lie.
        plan: what they are.
        frame_rate: labels a second.
        num_clusters: number of units.
    """

    def __init__(
        self, folder: Path, plan: LabelsPlan, shards: "Sequence[Shard]", cache_bytes: int = _CACHE_BYTES
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.frame_rate = plan.frame_rate
        self.num_clusters = plan.num_clusters
        self._shards = list(shards)
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[int, NDArray[np.uint16 | np.int32]] = OrderedDict()
        self._places: dict[str, tuple[int, int, int]] = {}
        for number, shard in enumerate(self._shards):
            ends = np.cumsum(shard.frames).tolist()
            for key, start, end in zip(shard.keys, [0, *ends], ends, strict=False):
                if key in self._places:
                    raise DataError(f"{shard.path}: holds {key!r}, which another shard has too; make the labels anew")
                self._places[key] = (number, start, end)

    @classmethod
    def load(cls, folder: str | Path, *, cache_bytes: int = _CACHE_BYTES) -> "UnitLabels":
        """Open a folder of labels.

        Args:
            folder: that ``make_targets`` wrote.
            cache_bytes: memory for shards.

        Raises:
            DataError: it holds no labels, not all of them, or a shard is damaged.
        """
        folder = Path(folder)
        plan = LabelsPlan.load(folder)
        if not plan.finished:
            raise DataError(
                f"{folder}: not all recordings have labels yet; make them again with the same arguments, which "
                "continues"
            )
        shards = read_shards(folder)
        held = sum(len(shard.keys) for shard in shards)
        if plan.recordings != held:
            raise DataError(f"{folder}: holds labels of {held} recordings, {PLAN_FILE} says {plan.recordings}")
        return cls(folder, plan, shards, cache_bytes)

    def __getitem__(self, key: str) -> NDArray[np.int32]:
        """Labels ``(time,)`` of a recording.

        Raises:
            DataError: it has none.
        """
        if key not in self._places:
            raise DataError(
                f"{self.folder}: has no labels of {key!r} (it has of {len(self)} recordings, such as "
                f"{next(iter(self), None)!r}); make the labels of all recordings"
            )
        number, start, end = self._places[key]
        return self._units(number)[start:end].astype(np.int32)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def num_frames(self, key: str) -> int:
        """Labels of a recording, without reading them."""
        _, start, end = self._places[key]
        return end - start

    def _units(self, number: int) -> NDArray[np.uint16 | np.int32]:
        if number in self._cache:
            self._cache.move_to_end(number)
        else:
            self._cache[number] = self._shards[number].units()
            while len(self._cache) > 1 and sum(units.nbytes for units in self._cache.values()) > self._cache_bytes:
                self._cache.popitem(last=False)
        return self._cache[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}


@dataclass(frozen=True)
class Shard:
    """A file of labels.

    Attributes:
        path: of the file.
        keys: of its recordings, in order.
        frames: labels of each.
    """

    path: Path
    keys: tuple[str, ...]
    frames: tuple[int, ...]

    @classmethod
    def write(
        cls, folder: Path, number: int, labels: Sequence[tuple[str, NDArray[np.int32]]], num_clusters: int
    ) -> "Shard":
        """Write a shard at once: whenever the process is killed, it is complete or not there.

        Args:
            folder: where to.
            number: of the shard.
            labels: key and units of each recording, in order.
            num_clusters: number of units.
        """
        dtype = np.uint16 if num_clusters <= 1 << 16 else np.int32
        units = np.concatenate([units for _, units in labels]).astype(dtype)
        keys = np.frombuffer(json.dumps([key for key, _ in labels], ensure_ascii=False).encode(), np.uint8)
        frames = np.array([len(units) for _, units in labels], np.int64)
        path = shard_path(folder, number)
        partial = path.with_name(f".{path.name}.partial")
        save_file({"keys": keys, "frames": frames, "units": units}, partial, {"crc32": _crc32(keys, frames, units)})
        with partial.open("rb") as file:
            # Renamed before its content is on the disk, a power cut could leave an empty file of the final name.
            os.fsync(file.fileno())
        partial.replace(path)
        return cls(path, tuple(key for key, _ in labels), tuple(frames.tolist()))

    @classmethod
    def read(cls, path: Path) -> "Shard":
        """Read keys and numbers of frames.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with safe_open(path, "np") as file:
                keys = json.loads(file.get_tensor("keys").tobytes())
                frames = file.get_tensor("frames").tolist()
                size = file.get_slice("units").get_shape()
        except (OSError, ValueError, SafetensorError) as error:
            raise _damaged(path, str(error)) from error
        if len(keys) != len(frames) or size != [sum(frames)]:
            raise _damaged(path, f"{len(keys)} keys, {len(frames)} numbers of frames, {size} labels")
        return cls(path, tuple(keys), tuple(frames))

    def units(self) -> NDArray[np.uint16 | np.int32]:
        """All labels, one recording after the other.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with safe_open(self.path, "np") as file:
                content = [file.get_tensor(name) for name in ("keys", "frames", "units")]
                stated = (file.metadata() or {}).get("crc32")
        except (OSError, ValueError, SafetensorError) as error:
            raise _damaged(self.path, str(error)) from error
        if _crc32(*content) != stated:
            raise _damaged(self.path, "its checksum does not fit")
        return content[2]


def shard_path(folder: Path, number: int) -> Path:
    """File of a shard."""
    return folder / f"labels-{number:05d}.safetensors"


def read_shards(folder: Path) -> list[Shard]:
    """The shards that a folder holds, in order.

    Raises:
        DataError: one is damaged, or one in the middle is missing.
    """
    paths = sorted(folder.glob(_SHARDS), key=lambda path: int(path.stem.removeprefix("labels-")))
    for number, path in enumerate(paths):
        if path != shard_path(folder, number):
            raise DataError(
                f"{shard_path(folder, number)}: is missing, but later shards are there; bring it back, or "
                "remove the folder and make the labels anew"
            )
    return [Shard.read(path) for path in paths]


def recording_keys(examples: Sequence[Example]) -> list[str]:
    """What labels call recordings: the path below the deepest folder that holds all of them, or the name.

    The same list of recordings has the same keys wherever its folder lies and however its path was given; a part of the
    list may have others.

    Args:
        examples: the recordings.

    Returns:
        A key for each.

    Raises:
        DataError: two recordings have the same key.
    """
    files = [_absolute(example.audio) for example in examples if isinstance(example.audio, Path)]
    root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    keys = [
        _absolute(example.audio).relative_to(root).as_posix() if isinstance(example.audio, Path) else example.name
        for example in examples
    ]
    repeated = [key for key, times in Counter(keys).items() if times > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} recordings are named like another one, such as {repeated[0]!r}; expected a name of its "
            "own for each (the name of Example)"
        )
    return keys


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.expanduser().absolute()))


def _crc32(*arrays: NDArray[Any]) -> str:
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return f"{checksum:08x}"


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: is no complete shard of labels ({reason}); remove it and make the labels again, which continues"
    )
