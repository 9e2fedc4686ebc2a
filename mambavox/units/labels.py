"""Unit labels of recordings: a folder of shards, in the order of the recordings."""

import json
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mambavox.errors import DataError
from mambavox.files import replacing, to_json, write_atomically

PLAN_FILE = "targets.json"

UNIT_BYTES = 2
"""Of a label on the disk, of up to 65536 units."""

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
        write_atomically(folder / PLAN_FILE, to_json(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "LabelsPlan":
        """Read ``targets.json``.

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            content: dict[str, Any] = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
            return cls(**{spec.name: content[spec.name] for spec in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{folder}: holds no unit labels ({PLAN_FILE}: {error}); expected a folder that make_targets or "
                "`mambavox units label` wrote"
            ) from error


def are_finished(folder: Path) -> bool:
    """Whether a folder holds labels of all recordings.

    Args:
        folder: that ``make_targets`` writes.

    Raises:
        DataError: what it holds is damaged.
    """
    return (folder / PLAN_FILE).is_file() and LabelsPlan.load(folder).finished


class UnitLabels(Mapping[str, NDArray[np.int32]]):
    """Labels of recordings by their key (see :func:`mambavox.data.recording_keys`).

    Shards are read when first asked for and kept while there is room, so that the labels of 60000 hours can be gone
    through in order, and those of 1000 hours at random. Nothing of a recording but its number of frames is always in
    memory, unless it is asked for by its key alone. It can be sent to other processes.

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
        cache_bytes: memory for shards, of each process.
        frames: ``(recordings,)`` labels of each recording, in the order that they were made in.
    """

    def __init__(
        self, folder: Path, plan: LabelsPlan, shards: "Sequence[Shard]", cache_bytes: int = _CACHE_BYTES
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.frame_rate = plan.frame_rate
        self.num_clusters = plan.num_clusters
        self._shards = list(shards)
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[int, tuple[list[str], NDArray[np.uint16 | np.int32]]] = OrderedDict()
        self.frames = np.concatenate([np.zeros(0, np.int64), *(shard.frames for shard in self._shards)])
        self._starts = np.cumsum([0, *(len(shard.frames) for shard in self._shards)])

    @cached_property
    def _places(self) -> dict[str, int]:
        """Place of each recording; made when a recording is first asked for by its key alone."""
        places: dict[str, int] = {}
        for shard in self._shards:
            for key in shard.read_keys():
                if key in places:
                    raise DataError(f"{shard.path}: holds {key!r}, which another shard has too; make the labels anew")
                places[key] = len(places)
        return places

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
        held = sum(len(shard.frames) for shard in shards)
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
        return self.at(self._places[key], key)

    def at(self, place: int, key: str) -> NDArray[np.int32]:
        """Labels ``(time,)`` of the recording at a place, which needs no table of all keys.

        Args:
            place: number of the recording, in the order that the labels were made in.
            key: of the recording.

        Raises:
            DataError: another recording lies there, or the shard is damaged.
        """
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        keys, units = self._units(number)
        held = keys[place - int(self._starts[number])]
        if held != key:
            raise DataError(
                f"{self.folder}: recording {place + 1} is {held!r}, that of the data {key!r}; give the data of then, "
                "or make the labels anew"
            )
        start = int(self.frames[self._starts[number] : place].sum())
        return units[start : start + int(self.frames[place])].astype(np.int32)

    def get(self, key: str, default: Any = None) -> Any:
        """Labels ``(time,)`` of a recording, or the default where it has none."""
        # Mapping's own get waits for a KeyError.
        return self[key] if key in self else default  # noqa: SIM401

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(shard.read_keys() for shard in self._shards)

    def num_frames(self, key: str) -> int:
        """Labels of a recording, without reading them."""
        return int(self.frames[self._places[key]])

    def _units(self, number: int) -> tuple[list[str], NDArray[np.uint16 | np.int32]]:
        if number in self._cache:
            self._cache.move_to_end(number)
        else:
            self._cache[number] = self._shards[number].content()
            while len(self._cache) > 1 and sum(units.nbytes for _, units in self._cache.values()) > self.cache_bytes:
                self._cache.popitem(last=False)
        return self._cache[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}


@dataclass(frozen=True)
class Shard:
    """A file of labels.

    Attributes:
        path: of the file.
        frames: ``(recordings,)`` labels of each.
    """

    path: Path
    frames: NDArray[np.int64]

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
        with replacing(path, sync=True) as partial:
            save_file({"keys": keys, "frames": frames, "units": units}, partial, {"crc32": _crc32(keys, frames, units)})
        return cls(path, frames)

    @classmethod
    def read(cls, path: Path) -> "Shard":
        """Read the numbers of frames.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with safe_open(path, "np") as file:
                keys = json.loads(file.get_tensor("keys").tobytes())
                frames = file.get_tensor("frames")
                size = file.get_slice("units").get_shape()
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise _damaged(path, str(error)) from error
        if len(keys) != len(frames) or size != [frames.sum()]:
            raise _damaged(path, f"{len(keys)} keys, {len(frames)} numbers of frames, {size} labels")
        return cls(path, frames)

    def read_keys(self) -> list[str]:
        """Keys of its recordings, in order.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with safe_open(self.path, "np") as file:
                return [*json.loads(file.get_tensor("keys").tobytes())]
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise _damaged(self.path, str(error)) from error

    def content(self) -> tuple[list[str], NDArray[np.uint16 | np.int32]]:
        """Keys, and all labels, one recording after the other.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with safe_open(self.path, "np") as file:
                content = [file.get_tensor(name) for name in ("keys", "frames", "units")]
                stated = (file.metadata() or {}).get("crc32")
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise _damaged(self.path, str(error)) from error
        if _crc32(*content) != stated:
            raise _damaged(self.path, "its checksum does not fit")
        return json.loads(content[0].tobytes()), content[2]


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


def _crc32(*arrays: NDArray[Any]) -> str:
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return f"{checksum:08x}"


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: is no complete shard of labels ({reason}); remove it and make the labels again, which continues"
    )
