"""The recipe of the nano Mamba-HuBERTs, in a few steps."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mambavox.training.pretraining import config

RECIPE = Path(__file__).parents[2] / "recipes" / "nano_hubert" / "pretrain.py"


@pytest.fixture
def recipe():
    spec = importlib.util.spec_from_file_location("nano_hubert", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def packs(recipe, tmp_path):
    """Folders like the real ones, with three short recordings each."""
    generator = np.random.default_rng(0)
    for pack in recipe.PACKS:
        rows = []
        for number, (split, language) in enumerate((("train", "de"), ("valid", "nl"), ("test", "en"), ("train", "zh"))):
            path = tmp_path / "data" / pack / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * generator.standard_normal(16_000), 16_000)
            rows.append({"path": path.name, "split": split, "language": language, "duration": 1.0})
        (path.parent / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_which_recordings_are_heard(recipe, packs, tmp_path):
    recipe.write_manifest(packs, tmp_path / "manifest.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert all(Path(row["path"]).is_file() for row in rows)
    counts = {}
    for row in rows:
        counts[row["source"], row["split"]] = counts.get((row["source"], row["split"]), 0) + 1
    assert counts == {
        ("ssl_speech", "train"): 2,
        ("librispeech_subset", "train"): 2,
        ("librispeech_subset", "valid"): 1,
        ("arabic_speech_commands", "train"): 2,
        ("arabic_speech_commands", "valid"): 1,
        ("multilingual_asr", "train"): 1,
    }


def test_two_iterations_and_a_second_call_that_finds_them(recipe, packs, tmp_path, monkeypatch, capsys):
    words = ["--data", str(packs), "--output", str(tmp_path / "runs"), "--encoders", "ext-bimamba"]
    words += ["--steps", "2", "2", "--batch-seconds", "2", "2"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    monkeypatch.setattr(recipe, "ENCODERS", {"ext-bimamba": 1})
    monkeypatch.setattr(config, "CLUSTERS", {True: 4, False: 4})
    recipe.main()
    for iteration in ("it1", "it2"):
        assert (tmp_path / "runs" / "ext-bimamba" / iteration / "model.safetensors").is_file()
    targets = json.loads((tmp_path / "runs" / "ext-bimamba" / "it2" / "metrics.json").read_text())["details"]["targets"]
    assert targets.endswith("it1:1")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.json")}
    recipe.main()
    assert {path: path.stat().st_mtime_ns for path in times} == times
