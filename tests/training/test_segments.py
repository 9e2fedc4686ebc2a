"""Stretches of one long file are learned, scored and heard as the files would be that they could be cut into."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_hubert import tiny_config
from training.pretraining.conftest import tiny_run
from transformers import Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mambavox.cli.application import app
from mambavox.data import AudioSegment, Example
from mambavox.evaluation.compare.fingerprint import data_fingerprint
from mambavox.hubert import MambaHubertForCTC
from mambavox.runs.result import RunResult
from mambavox.training.configs import CONFIGS
from mambavox.training.pretraining.plan import plan
from mambavox.training.pretraining.recordings import load_recordings
from mambavox.training.pretraining.recordings import read_examples as read_unlabelled
from mambavox.training.run import run
from mambavox.training.transcripts import load_transcripts

RATE = 16_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same fourteen tones as files, and as stretches of one file; two of them are of a split to leave out."""
    folder, generator = tmp_path_factory.mktemp("segments"), np.random.default_rng(0)
    (folder / "files").mkdir()
    (folder / "stretches").mkdir()
    rows: dict[str, list[dict[str, Any]]] = {"files": [], "stretches": []}
    tones, place = [], 0
    for word, frequency in {"low": 300.0, "high": 2500.0}.items():
        for number, split in enumerate(("train",) * 3 + ("valid", "test", "test", "smoke")):
            count = round(RATE * (0.5 + 0.05 * number))
            tone = 0.3 * np.sin(2 * np.pi * frequency * np.arange(count) / RATE)
            tones.append(((tone + 0.01 * generator.standard_normal(count)) * 32767).astype(np.int16))
            name = f"long_{place / RATE:.3f}-{(place + count) / RATE:.3f}.wav"  # so that keys are the same
            soundfile.write(folder / "files" / name, tones[-1], RATE)
            about = {"label": word, "text": word, "split": split}
            rows["files"].append({"path": name, **about})
            times = {"offset": place / RATE, "duration": count / RATE}
            rows["stretches"].append({"audio_filepath": "long.wav", **times, **about})
            place += count
    soundfile.write(folder / "stretches" / "long.wav", np.concatenate(tones), RATE)
    for name, lines in rows.items():
        (folder / name / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: str(folder / name) for name in rows}


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "mamba"
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 8), "conv_stride": (5, 8, 8)}
    MambaHubertForCTC(tiny_config(hidden_size=32, feature_grad_mult=1.0, **sizes)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["classify", "ctc"])
def runs(
    request: pytest.FixtureRequest,
    sources: dict[str, str],
    mamba: str,
    backbone: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A run of a task on either."""
    folder = tmp_path_factory.mktemp(request.param)
    values: dict[str, Any] = {
        "classify": {"backbone": backbone("ast"), "cache_features": True, "bottleneck_dim": 4},
        "ctc": {"backbone": mamba, "language": "en", "length_buckets": True, "drop_longer_than": 0.57},
    }[request.param]
    shared = {
        "drop_splits": "smoke",
        "epochs": 2,
        "batch_size": 2,
        "tensorboard": False,
        "device": "cpu",
        "learning_rate": 3e-3,
    }
    for name, data in sources.items():
        output = str(folder / name)
        run(CONFIGS[request.param].from_mapping({**shared, **values, "data": data, "output": output}))
    return {name: folder / name for name in sources}


def test_a_run_on_stretches_is_the_run_on_files(runs: dict[str, Path], sources: dict[str, str]) -> None:
    files, stretches = (RunResult.load(runs[name]) for name in ("files", "stretches"))
    assert stretches.scores == files.scores
    assert (stretches.hours, stretches.recordings) == (files.hours, files.recordings)
    if files.task == "ctc":
        assert files.recordings["train"] == 4  # drop_longer_than looks at the stretch
    assert any(note.endswith("are stretches of 1 files, as the columns of times say") for note in stretches.notes)
    (weights, others) = (load_file(next(runs[name].glob("*.safetensors"))) for name in runs)
    assert weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)


def _run(*arguments: Any) -> str:
    done = CliRunner().invoke(app, [str(item) for item in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands_hear_stretches(runs: dict[str, Path], sources: dict[str, str], tmp_path: Path) -> None:
    task = RunResult.load(runs["files"]).task
    manifests = {name: f"{folder}/manifest.jsonl" for name, folder in sources.items()}
    scored = [
        json.loads(_run("evaluate", runs["files"], "--data", data, "--json"))["splits"] for data in manifests.values()
    ]
    fewer = json.loads(
        _run("evaluate", runs["files"], "--data", manifests["stretches"], "--drop-splits", "smoke,valid,test", "--json")
    )["splits"]["all"]
    assert [part.get("recordings", len(part.get("rows", ()))) for part in (fewer, scored[0]["all"])] == [6, 14]
    for row in (row for split in scored for part in split.values() for row in part.get("rows", ())):
        row.pop("name")
    assert scored[0] == scored[1]
    if task == "classify":
        said = [json.loads(_run("predict", runs["files"], data, "--json")) for data in manifests.values()]
        assert len(said[1]) == 14 and said[1][1]["file"].endswith("long.wav 0.500-1.050 s")
        assert [row["predictions"] for row in said[0]] == [row["predictions"] for row in said[1]]
        below = json.loads(_run("predict", runs["files"], sources["files"], "--json"))  # a flat folder is just read
        found, expected = ({row["file"]: row["predictions"] for row in rows} for rows in (below, said[0]))
        assert found == expected
        told = CliRunner().invoke(app, ["predict", str(runs["files"]), sources["files"]]).stderr
        assert told.startswith("warning: ") and told.count("\n") == 1 and "1 .jsonl" in told  # on one line
        return
    for whole in ("60", "0.1"):  # seconds: at once, and block by block
        options = ("--model", runs["files"], "--whole-seconds", whole, "--format", "json,txt", "--output")
        for name, data in manifests.items():
            _run("transcribe", data, *options, tmp_path / whole / name)
        written = [sorted((tmp_path / whole / name).iterdir()) for name in manifests]
        assert [path.name for path in written[0]] == [path.name for path in written[1]] and len(written[0]) == 28
        told = [
            [{**json.loads(path.read_text()), "file": ""} for path in some if path.suffix == ".json"]
            for some in written
        ]
        assert told[0] == told[1]


def test_other_readers_hear_stretches(sources: dict[str, str], mamba: str, tmp_path: Path) -> None:
    """Whisper's transcripts, pre-training and its plan, and the fingerprints of comparisons."""
    configs: Any = [
        CONFIGS["whisper"].from_mapping({"data": data, "drop_splits": "smoke"}) for data in sources.values()
    ]
    splits = [load_transcripts(config).splits for config in configs]
    assert splits[0]["train"].seconds == splits[1]["train"].seconds
    runs = {name: tiny_run(data, tmp_path / name, drop_splits="smoke") for name, data in sources.items()}
    found = [
        load_recordings(read_unlabelled(config), min_samples=100, cache_bytes=1e9, raise_problems=True)
        for config in runs.values()
    ]
    assert list(found[0].keys) == list(found[1].keys)
    for index in range(len(found[0].examples)):
        count = int(found[0].lengths[index])
        assert np.array_equal(found[0].read(index, 10, count), found[1].read(index, 10, count))
    assert plan(runs["files"]) == plan(runs["stretches"])
    file = Path(sources["stretches"]) / "long.wav"
    some = [[Example(AudioSegment(file, start, 1.0), name="x")] for start in (0.5, 0.5, 0.501)]
    prints = [data_fingerprint(examples, str(file.parent)) for examples in some]
    assert prints[0] == prints[1] != prints[2]
