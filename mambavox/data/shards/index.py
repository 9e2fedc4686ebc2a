"""The index of a tar: which recordings lie where in it, and how long they are."""

import json
import os
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mambavox.data.audio import read_audio
from mambavox.data.audio_file import can_open
from mambavox.data.checks import AudioProblem
from mambavox.data.class_folders import counted, ending, is_named_as_sound
from mambavox.errors import AudioError, DataError, DataWarning
from mambavox.files import replacing

INDEX_SUFFIX = ".index.safetensors"
"""Of the index, in place of the tar's ``.tar``."""

_BEGINNING = 1 << 16  # bytes by which a recording is known
_BLOCK = 512  # bytes, in which tars count
_LISTED = 20  # problems in one error message


@dataclass(frozen=True)
class ShardIndex:
    """What lies where in a tar.

    Attributes:
        keys: paths of the recordings inside the tar, in its order.
        starts: ``(recordings,)`` byte at which each begins.
        sizes: ``(recordings,)`` bytes of each.
        samples: ``(recordings,)`` length of each at 16 kHz.
        fields: ``(recordings, 2)`` first byte and size of the JSON beside each; size 0 where there is none.
        tar_bytes: size of the tar.
        left_out: recordings that could not be used and are not in the index.
        taken: recordings of the packed list that this and the earlier shards of its part stand for, those left out
            included; 0 of a tar that was packed elsewhere.
    """

    keys: Sequence[str]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    samples: NDArray[np.int64]
    fields: NDArray[np.int64]
    tar_bytes: int
    left_out: Sequence[AudioProblem] = ()
    taken: int = 0

    def save(self, path: Path) -> None:
        """Write the index at once: it is complete or not there.

        Args:
            path: of the index.
        """
        words = json.dumps([*self.keys], ensure_ascii=False).encode()
        left_out = [[problem.name, problem.reason] for problem in self.left_out]
        content = save(
            {
                "keys": np.frombuffer(words, np.uint8),
                "starts": self.starts,
                "sizes": self.sizes,
                "samples": self.samples,
                "fields": self.fields,
            },
            {"tar": json.dumps({"tar_bytes": self.tar_bytes, "left_out": left_out, "taken": self.taken})},
        )
        with replacing(path, sync=True) as partial:
            partial.write_bytes(content)

    @classmethod
    def load(cls, tar: Path) -> "ShardIndex":
        """Read the index of a tar.

        Args:
            tar: path of the tar.

        Raises:
            DataError: the tar or its index is missing or damaged, or they do not fit each other.
        """
        path = index_path(tar)
        if not tar.is_file():
            raise DataError(f"{tar}: no such tar; bring it back, or leave it out of the list of shards")
        if not path.is_file():
            raise DataError(
                f"{tar}: has no index ({path.name}); make it with: mambavox shards index {tar.parent or '.'}"
            )
        try:
            with safe_open(path, "np") as file:
                arrays = [file.get_tensor(name) for name in ("starts", "sizes", "samples", "fields")]
                keys = json.loads(file.get_tensor("keys").tobytes())
                about = json.loads(file.metadata()["tar"])
            starts, sizes, samples, fields = arrays
            left_out = [AudioProblem(*problem) for problem in about["left_out"]]
            index = cls(keys, starts, sizes, samples, fields, about["tar_bytes"], left_out, about["taken"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise DataError(
                f"{path}: is no complete index ({error}); remove it and make it again with: mambavox shards index "
                f"{tar.parent}"
            ) from error
        found = tar.stat().st_size
        if found != index.tar_bytes:
            what = "is cut off" if found < index.tar_bytes else "has grown"
            raise DataError(
                f"{tar}: {what}: it has {found} bytes, its index says {index.tar_bytes}; copy it again, or, if it was "
                f"changed on purpose, remove {path.name} and make it again with: mambavox shards index {tar.parent}"
            )
        return index


def index_path(tar: Path) -> Path:
    """File of a tar's index."""
    return tar.with_suffix(INDEX_SUFFIX)


def index_shards(
    tars: Sequence[Path],
    *,
    on_error: Literal["raise", "skip"] = "raise",
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[ShardIndex]:
    """Make the index of tars that were packed elsewhere; those that have one that fits are passed over.

    Each tar is read once from beginning to end, and every recording is decoded, so that training needs no check of its
    own. A recording is any member that can be opened as one, or is named as sound or film; a member ``.json`` of the
    same name tells about it, as in WebDataset and in lhotse's Shar (``recording.*.tar``). Other members are not read.

    Args:
        tars: their paths.
        on_error: ``"raise"`` ends at a tar with recordings that cannot be used, naming them; ``"skip"`` leaves those
            recordings out of the index and lists them in it.
        num_workers: threads; default one a core, at most 8.
        progress: called with the numbers of tars done and in all.

    Returns:
        The indices.

    Raises:
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
        DataError: a tar is missing, cut off, compressed, or holds no recordings.

    Warns:
        DataWarning: tars hold members that are neither recordings nor JSON.
    """
    found = []
    others: Counter[str] = Counter()
    work = partial(_ensure_index, on_error=on_error, others=others)
    with ThreadPoolExecutor(num_workers or min(os.cpu_count() or 1, 8)) as pool:
        try:
            for done, index in enumerate(pool.map(work, tars), start=1):
                found.append(index)
                if progress is not None:
                    progress(done, len(tars))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if others:
        warnings.warn(
            f"{sum(others.values())} members of the tars are neither recordings nor JSON and are left out: "
            f"{counted(others)}",
            DataWarning,
            stacklevel=2,
        )
    return found


def _ensure_index(tar: Path, on_error: Literal["raise", "skip"], others: Counter[str]) -> ShardIndex:
    if index_path(tar).is_file():
        return ShardIndex.load(tar)
    index = scan_tar(tar, others)
    if index.left_out and on_error == "raise":
        raise AudioError(unusable(index.left_out, len(index.left_out) + len(index.keys), str(tar)))
    if not index.keys:
        raise DataError(f"{tar}: holds no recordings that can be read; expected audio files, such as a.flac and a.json")
    index.save(index_path(tar))
    return index


def unusable(problems: Sequence[AudioProblem], number: int, where: str) -> str:
    """Message about recordings that cannot be used.

    Args:
        problems: the recordings.
        number: of recordings that were looked at.
        where: they lie.
    """
    reasons = "\n".join(f"  {problem.reason}" for problem in problems[:_LISTED])
    more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return (
        f"{where}: {len(problems)} of {number} recordings cannot be used:\n{reasons}{more}\n"
        "Mend them or take them out, or leave them out with --on-error skip"
    )


def scan_tar(tar: Path, others: Counter[str] | None = None) -> ShardIndex:
    """Read a tar from beginning to end and decode its recordings.

    Args:
        tar: its path.
        others: receives the endings of the members that are neither recordings nor JSON.

    Raises:
        DataError: the tar is missing, cut off, compressed, or no tar.
    """
    rows: list[tuple[str, int, int, int]] = []
    beside: dict[str, tuple[int, int]] = {}
    left_out: list[AudioProblem] = []
    end = 0
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                file.members = []  # type: ignore[attr-defined]  # it would keep all of them
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                if path.suffix.lower() == ".json":
                    beside[_stem(member.name)] = (member.offset_data, member.size)
                    continue
                content = file.extractfile(member)
                assert content is not None
                if is_named_as_sound(member.name) or can_open(content.read(_BEGINNING)):
                    content.seek(0)
                    name = f"{tar}: {member.name}"
                    try:
                        samples = len(read_audio(content.read(), name=name))
                    except AudioError as error:
                        left_out.append(AudioProblem(name, str(error)))
                    else:
                        rows.append((member.name, member.offset_data, member.size, samples))
                elif others is not None:
                    others[ending(member.name)] += 1
    except FileNotFoundError as error:
        raise DataError(f"{tar}: no such tar; bring it back, or leave it out of the list of shards") from error
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{tar}: is no complete tar ({error}); copy it again. A compressed one must be unpacked, e.g. gunzip "
            "FILE.tar.gz: recordings are compressed as they are"
        ) from error
    size = tar.stat().st_size
    if size < end + _BLOCK:
        raise DataError(f"{tar}: is cut off: it has {size} bytes and no end mark after its last member; copy it again")
    return to_index(rows, [beside.get(_stem(key), (0, 0)) for key, *_ in rows], size, left_out)


def to_index(
    rows: Sequence[tuple[str, int, int, int]],
    fields: Sequence[tuple[int, int]],
    tar_bytes: int,
    left_out: Sequence[AudioProblem] = (),
    taken: int = 0,
) -> ShardIndex:
    """An index of lists.

    Args:
        rows: key, first byte, bytes and samples of each recording.
        fields: first byte and bytes of the JSON beside it.
        tar_bytes: size of the tar.
        left_out: see :class:`ShardIndex`.
        taken: see :class:`ShardIndex`.
    """
    numbers: NDArray[Any] = np.array([row[1:] for row in rows], np.int64).reshape(-1, 3)
    starts, sizes, samples = (np.ascontiguousarray(column) for column in numbers.T)
    beside = np.array(fields, np.int64).reshape(-1, 2)
    return ShardIndex([row[0] for row in rows], starts, sizes, samples, beside, tar_bytes, left_out, taken)


def _stem(name: str) -> str:
    """What files of one sample share: the path up to the first dot of the file's name, as WebDataset has it."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]
