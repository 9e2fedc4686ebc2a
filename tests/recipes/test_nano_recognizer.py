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
    for name in ("nano_recognizer", "documents", "speech"):
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
        "ssl_speech": [("two", "libri"), ("hey one", "wake"), ("three", "wake"), (None, "libri")],
    }
    for pack, recordings in rows.items():
        folder = data / pack
        folder.mkdir(parents=True)
        lines = []
        for number, (text, split) in enumerate(recordings):
            soundfile.write(folder / f"{number}.wav", 0.1 * generator.standard_normal(24_000), 16_000)
            segments = [{"start": 0.0, "end": 0.7, "text": "One two."}, {"start": 0.7, "end": 1.5, "text": "Three!"}]
            line = {"path": f"{number}.wav", "text": text, "language": "en"}
            part = {"source": split} if pack == "ssl_speech" else {"split": split, "segments": segments}
            lines.append(line | part)
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
        ("ssl_speech/libri", "train"): 1,
        ("ssl_speech/wake", "train"): 1,
    }
    words = {word for row in rows if row["split"] == "test_synth" for word in row["text"]}
    assert words <= set("three one "), "phrases of the fifth sentence alone"


def test_tables_and_a_plot_of_three_encoders(recipe, packs, tmp_path, monkeypatch, capsys):
    for encoder in (*recipe.CAUSAL, recipe.BIDIRECTIONAL):
        folder = tmp_path / "pretrained" / encoder / "it2"
        MambaHubertForPreTraining(tiny_config(encoder)).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    words = ["--data", str(packs), "--pretrained", str(tmp_path / "pretrained"), "--output", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["nano_recognizer.py", *words, "--seeds", "0", "1", "--epochs", "1"])
    recipe.main()
    table = (tmp_path / "runs" / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()}
    encoders = [f"{encoder} {rate}" for encoder in (*recipe.CAUSAL, recipe.BIDIRECTIONAL) for rate in ("WER", "CER")]
    assert rows["%"] == encoders
    for name in ("valid", "test_other", "test_synth", "test_other, 1 joined", "reading, pieces", "reading, whole"):
        assert ["±" in cell for cell in rows[name]] == [True] * 4 + [False] * 2, name
    assert [bool(cell) for cell in rows["test_other, chunks of 0.32 + 0.16 s"]] == [False] * 4 + [True] * 2
    assert (tmp_path / "runs" / "documents.png").stat().st_size > 10_000


def test_documents_are_recordings_joined_in_order(recipe):
    said = [(np.full(size, size, dtype=np.float32), str(size)) for size in (1, 2, 3)]
    joined = recipe.documents.join(said, 2)
    assert [(list(waveform), text) for waveform, text in joined] == [([1, 2, 2], "1 2"), ([3, 3, 3], "3")]
