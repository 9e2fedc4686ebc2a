"""The recipe of the nano recognisers, in a few steps."""

import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor

from mambavox.data.synth import synthesize
from mambavox.hubert import MambaHubertForPreTraining

RECIPE = Path(__file__).parents[2] / "recipes" / "recognition"


@pytest.fixture
def recipe(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    monkeypatch.syspath_prepend(str(RECIPE))
    import english
    import nano_recognizer

    monkeypatch.setattr(english, "PHRASES", {"train": 4, "test_synth": 2})
    monkeypatch.setattr(english, "flite", lambda text, voice: synthesize(text))  # which need not be there
    yield nano_recognizer
    for name in ("nano_recognizer", "documents", "english", "speech"):
        sys.modules.pop(name, None)


@pytest.fixture
def packs(tmp_path):
    """Texts and folders like the real ones."""
    data = tmp_path / "data"
    generator = np.random.default_rng(0)
    rows = {
        "librispeech_subset": [("one two", "train"), ("two three", "valid"), ("three one", "test_other")],
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
    with gzip.open(data / "texts" / "cmudict.txt.gz", "wt") as file:
        file.write("SEVEN 1 S EH1 V AH0 N\n'TIS 1 T IH1 Z\nEIGHT 1 EY1 T\n")
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
        ("espeak-ng", "train"): 2,
        ("flite", "train"): 2,
        ("espeak-ng", "test_synth"): 1,
        ("flite", "test_synth"): 1,
        ("librispeech", "train"): 2 * recipe.english.READINGS,
        ("librispeech", "valid"): 1,
        ("librispeech", "test_other"): 1,
        ("wake words", "train"): 1,
    }
    heard = [soundfile.info(row["path"]) for row in rows]
    assert all(info.samplerate == 16_000 and info.duration > 0.2 for info in heard)
    originals = {row["split"] for row in rows if str(packs) in row["path"]}
    assert originals == {"valid", "test_other"}, "what is tested is as it was recorded; what is heard is altered"
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


def test_words_of_the_dictionary_are_for_training(recipe, packs):
    train = recipe.english.read_texts(packs / "texts", ["A hundred, please"], "train")
    assert train.words["en"] == ["eight", "seven"]
    assert train.sentences["en"][-1] == "a hundred please" and "three one" not in train.sentences["en"]
    held_out = recipe.english.read_texts(packs / "texts", [], "test_synth")
    assert held_out.sentences["en"] == ["three one"] and held_out.words["en"] == ["one", "three"]


def test_alterations_are_drawn_and_keep_the_speech(recipe):
    waveform = synthesize("one two three four")
    altered = [recipe.english.alter(waveform, np.random.default_rng(seed)) for seed in range(20)]
    lengths = [len(sound) / len(waveform) for sound in altered]
    assert 0.86 < min(lengths) < 0.93 and 1.08 < max(lengths) < 1.16
    peaks = [float(np.abs(sound).max()) for sound in altered]
    assert 0.05 < min(peaks) < max(peaks) < 1 and altered[0].dtype == np.float32
    again = recipe.english.alter(waveform, np.random.default_rng(3))
    assert np.array_equal(again, altered[3])


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_flite_speaks(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    import english

    waveform = english.flite("one two three", "slt")
    assert 0.8 < len(waveform) / 16_000 < 3 and 0.1 < np.abs(waveform).max() < 1
    for name in ("english", "speech"):
        sys.modules.pop(name, None)


def test_without_flite_it_is_told(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(RECIPE))
    monkeypatch.setenv("PATH", str(tmp_path))
    import english

    with pytest.raises(SystemExit, match="apt-get install flite"):
        english.flite("one", "slt")
    for name in ("english", "speech"):
        sys.modules.pop(name, None)
