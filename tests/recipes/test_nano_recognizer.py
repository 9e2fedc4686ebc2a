"""The recipe of the nano recognisers, in a few steps."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor

from mambavox.hubert import MambaHubertForPreTraining

RECIPE = Path(__file__).parents[2] / "recipes" / "recognition"


@pytest.fixture
def recipe(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    monkeypatch.syspath_prepend(str(RECIPE))
    import nano_recognizer

    monkeypatch.setattr(nano_recognizer, "PHRASES", {"train": 4, "test_synth": 2})
    yield nano_recognizer
    for name in ("nano_recognizer", "speech"):
        sys.modules.pop(name, None)


@pytest.fixture
def packs(tmp_path):
    """Texts and folders like the real ones."""
    data = tmp_path / "data"
    generator = np.random.default_rng(0)
    rows = {
        "librispeech_subset": [("one two", "train"), ("two three", "valid"), ("three one", "test_other")],
        "fsdd": [("one", "train"), ("two", "test")],
        "longform_en": [("One two. Three!", "dev")],
    }
    for pack, recordings in rows.items():
        folder = data / pack
        folder.mkdir(parents=True)
        lines = []
        for number, (text, split) in enumerate(recordings):
            soundfile.write(folder / f"{number}.wav", 0.1 * generator.standard_normal(24_000), 16_000)
            segments = [{"start": 0.0, "end": 0.7, "text": "One two."}, {"start": 0.7, "end": 1.5, "text": "Three!"}]
            lines.append({"path": f"{number}.wav", "text": text, "split": split, "segments": segments})
        (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (data / "texts").mkdir()
    sentences = ("one two three", "two one", "three two one", "one one two", "three one")
    (data / "texts" / "en.tsv").write_text("".join(f"en\tsome\t{sentence}\n" for sentence in sentences))
    return data


def test_which_recordings_are_heard_and_tested(recipe, packs, tmp_path):
    manifest = recipe.write_manifest(packs, tmp_path / "runs")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    counts = {}
    for row in rows:
        counts[row["source"], row["split"]] = counts.get((row["source"], row["split"]), 0) + 1
    assert counts == {
        ("synth", "train"): 4,
        ("synth", "test_synth"): 2,
        ("librispeech_subset", "train"): 1,
        ("librispeech_subset", "valid"): 1,
        ("librispeech_subset", "test_other"): 1,
        ("fsdd", "train"): 1,
    }
    words = {word for row in rows if row["split"] == "test_synth" for word in row["text"]}
    assert words <= set("three one "), "phrases of the fifth sentence alone"


def test_a_table_of_two_encoders(recipe, packs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "PHRASES", {"train": 4, "test_synth": 2})
    for encoder in recipe.ENCODERS:
        folder = tmp_path / "pretrained" / encoder / "it2"
        MambaHubertForPreTraining(tiny_config(encoder)).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    words = ["--data", str(packs), "--pretrained", str(tmp_path / "pretrained"), "--output", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["nano_recognizer.py", *words, "--seeds", "0", "--epochs", "1"])
    recipe.main()
    table = (tmp_path / "runs" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]] == list(recipe.ENCODERS)
    heads = (
        "valid WER",
        "valid CER",
        "test_other WER",
        "test_synth CER",
        "longform, pieces WER",
        "longform, whole WER",
    )
    assert all(head in table.splitlines()[0] for head in heads)
