"""What a cell's result depends on besides its configuration: the recordings and the backbone."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mambavox import assets
from mambavox.data import AudioSegment, Example
from mambavox.hub import load_config

_SCHEME = re.compile(r"^\w{2,}:")  # not a drive letter
_MODEL_FILES = ("*.json", "*.safetensors", "*.bin")


def data_fingerprint(examples: Iterable[Example], data: str) -> str:
    """Hash of recordings: their contents, labels, columns and order, but not the place where they lie.

    Args:
        examples: the recordings.
        data: where they were read from.
    """
    digest = hashlib.sha256()
    for example in examples:
        columns = {key: str(value) for key, value in example.fields.items()}
        facts = [relative_name(example.name, data), example.label, columns]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        digest.update(_content(example))
    return digest.hexdigest()


def backbone_fingerprint(name: str) -> str:
    """Hash of a backbone's files, or its name and commit on the Hub.

    Args:
        name: an embedded model, a folder, or a Hugging Face name.

    Raises:
        ConfigError: there is no such model, or its configuration cannot be fetched.
    """
    folder = Path(assets.path(name) if name in assets.names() else name).expanduser()
    config = load_config(name)
    if not folder.is_dir():
        return f"{name}@{config._commit_hash}"
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _MODEL_FILES for file in folder.glob(pattern)):
        digest.update(file.name.encode())
        digest.update(_file_hash(file))
    return digest.hexdigest()


def recordings_fingerprint(rows: Iterable[Mapping[str, str]], data: str) -> str:
    """Hash of the names and targets of tested recordings, in order.

    Args:
        rows: their lines of ``predictions.csv``.
        data: where they were read from.
    """
    names = [(relative_name(row["recording"], data), row["target"]) for row in rows]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def relative_name(name: str, data: str) -> str:
    """A recording's name, seen from the data where it lies below them: the same on every machine.

    Args:
        name: of the recording, often its path.
        data: where it was read from.
    """
    root = Path(_SCHEME.sub("", data)).expanduser()
    root = root.parent if root.is_file() else root
    return os.path.relpath(name, root) if Path(name).is_absolute() or Path(name).is_relative_to(root) else name


def _content(example: Example) -> bytes:
    source: Any = example.source
    if isinstance(source, Mapping):
        if source.get("array") is not None:
            source = source["array"], source["sampling_rate"]
        else:
            source = source["bytes"] if source.get("bytes") is not None else Path(source["path"])
    if isinstance(source, AudioSegment):
        whole = _known_hash(source.path, *_state(source.path)) if source.path.is_file() else b"missing"
        return hashlib.sha256(whole + source.times.encode()).digest()
    if isinstance(source, Path):
        return _file_hash(source) if source.is_file() else b"missing"
    if isinstance(source, bytes):
        return hashlib.sha256(source).digest()
    samples, sampling_rate = source
    return hashlib.sha256(np.ascontiguousarray(samples).tobytes() + str(sampling_rate).encode()).digest()


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=1 << 12)
def _known_hash(path: Path, changed: int, size: int) -> bytes:
    """Hash of a file of which many stretches are recordings."""
    return _file_hash(path)


def _file_hash(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
