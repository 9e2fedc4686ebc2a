"""The recipe of nano-whisper's adaptation: which recordings, which comparison."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import pytest
import soundfile

from mambavox.evaluation.compare.grid import parse_task, parse_variant
from mambavox.training.whisper.config import WhisperConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "recognition"


@pytest.fixture
def recipe(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    monkeypatch.syspath_prepend(str(RECIPE))
    import languages

    yield languages
    for name in ("languages", "nano_whisper", "checkpoints", "phones", "speech"):
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data" / "texts").mkdir(parents=True)
    sentences = ("jedna dva", "dva tri", "tri jedna", "jedna jedna", "osm")  # the fifth is held out
    (tmp_path / "data" / "texts" / "cs.tsv").write_text("".join(f"cs\tsome\t{line}\n" for line in sentences))
    rows = [{"language": "de", "split": "train", "duration": 1.0, "path": f"{n}.wav", "text": "x"} for n in range(16)]
    rows += [
        {**rows[0], "split": "valid", "path": "v.wav"},
        {**rows[0], "duration": 13.0},
        {**rows[0], "language": "nl"},
    ]
    (tmp_path / "data" / "multilingual_asr").mkdir()
    (tmp_path / "data" / "multilingual_asr" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data"


def read(manifest):
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def test_phrases_of_a_language_that_the_backbone_has_not_heard(recipe, data, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "CLIPS", {"train": 3, "valid": 1, "test": 2})
    manifest = recipe.synthesised(data, tmp_path / "manifests", "cs")
    rows = read(manifest)
    assert [row["split"] for row in rows] == ["train"] * 3 + ["valid"] + ["test"] * 2
    assert all(soundfile.info(row["path"]).samplerate == 16_000 for row in rows)
    assert all(set(row["text"]) <= set("osm ") for row in rows if row["split"] == "test")
    assert all(set(row["text"]) <= set("jednavtri ") for row in rows if row["split"] != "test")
    manifest.write_text("kept")
    assert recipe.synthesised(data, tmp_path / "manifests", "cs").read_text() == "kept"


def test_real_recordings_that_fit_into_the_window(recipe, data, tmp_path):
    rows = read(recipe.real(data, tmp_path / "manifests", "de"))
    splits = [row["split"] for row in rows]
    assert (splits.count("train"), splits.count("valid"), splits.count("test")) == (14, 2, 1)
    assert Path(rows[-1]["path"]).name == "v.wav" and Path(rows[-1]["path"]).is_absolute()


def test_the_printed_comparison_is_one_that_the_command_line_takes(recipe, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "CLIPS", {"train": 1, "valid": 1, "test": 1})
    recipe.main(["--data", str(data), "--output", str(tmp_path / "runs"), "--tasks", "cs", "real-de"])
    command = shlex.split(capsys.readouterr().out)
    parsed = [parse_task(command[place + 1]) for place, word in enumerate(command) if word == "--task"]
    assert [(task.name, task.kind, task.settings["language"]) for task in parsed] == [
        ("cs", "whisper", "cs"),
        ("real-de", "whisper", "de"),
    ]
    variants = [parse_variant(words) for words in command[command.index("--methods") + 1].split(",")]
    assert [variant.method for variant in variants] == ["full", "lora", "bottleneck", "conformer", "mambadapter"]
    fields = {spec.name for spec in dataclasses.fields(WhisperConfig)} | {
        "learning_rates",
        "methods",
        "workers",
        "task",
    }
    assert {word[2:].replace("-", "_") for word in command if word.startswith("--")} <= fields
