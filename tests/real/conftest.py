"""A real Whisper, its recordings and the languages that it does not know."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from mambavox.asr.whisper import load_whisper
from mambavox.data import read_audio

RATE = 16_000
FOLDER, COMMAND = "MAMBAVOX_WHISPER", "MAMBAVOX_MAKE_WHISPER"


@pytest.fixture(scope="session")
def weights() -> str:
    """Folder of Whisper base, as it is given, or made once in the cache folder by the command that is given."""
    if given := os.environ.get(FOLDER):
        if not (Path(given) / "model.safetensors").is_file():
            pytest.fail(f"{FOLDER}={given}: holds no model.safetensors")
        return given
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "mambavox" / "whisper-base"
    if not (cache / "model.safetensors").is_file():
        if not (command := os.environ.get(COMMAND)):
            pytest.skip(
                f"no real Whisper: name the folder of one with {FOLDER}, or with {COMMAND} a command that makes it, "
                "in which {output} stands for the folder"
            )
        half = cache.with_name("whisper-base.making")
        shutil.rmtree(half, ignore_errors=True)
        half.parent.mkdir(parents=True, exist_ok=True)
        made = subprocess.run(
            [part.replace("{output}", str(half)) for part in shlex.split(command)], capture_output=True, text=True
        )
        if made.returncode or not (half / "model.safetensors").is_file():
            pytest.skip(f"no real Whisper: {command} failed: {(made.stderr or made.stdout).strip()[-500:]}")
        half.rename(cache)
    return str(cache)


@pytest.fixture(scope="session")
def loaded(weights: str) -> tuple[Any, Any]:
    """Whisper base that no test changes, and its processor."""
    model, processor = load_whisper(weights)
    return model.eval().requires_grad_(False), processor


@pytest.fixture
def fresh(loaded: tuple[Any, Any]) -> Callable[[], Any]:
    """Makes copies of Whisper base that a test may change."""
    host, _ = loaded

    def copy() -> Any:
        model = WhisperForConditionalGeneration(deepcopy(host.config))
        model.load_state_dict(host.state_dict())
        model.generation_config = type(host.generation_config).from_dict(host.generation_config.to_dict())
        return model.eval()

    return copy


def rows_of(folder: Path, **fields: str) -> list[dict[str, Any]]:
    """Rows of a folder's manifest with some fields, and their files."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    chosen = [row for row in rows if all(row[name] == value for name, value in fields.items())]
    return [{**row, "file": folder / row["path"]} for row in chosen]


@pytest.fixture
def clips(recordings: Path) -> list[np.ndarray]:
    """Three short English recordings of different lengths."""
    rows = rows_of(recordings / "librispeech_subset", split="test_other")
    return [read_audio(row["file"], RATE) for row in sorted(rows, key=lambda row: row["duration"])[20:41:10]]


@pytest.fixture
def talk(recordings: Path) -> np.ndarray:
    """The first 75 seconds of an English reading."""
    return read_audio(recordings / "longform_en" / "audio" / "longform_dev.flac", RATE)[: 75 * RATE]


@pytest.fixture
def features(loaded: tuple[Any, Any], clips: list[np.ndarray]) -> torch.Tensor:
    """Spectrograms of the short recordings."""
    return loaded[1].feature_extractor(clips, sampling_rate=RATE, return_tensors="pt").input_features
