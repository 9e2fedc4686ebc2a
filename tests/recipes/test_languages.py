"""The recipe of nano-whisper's adaptation: which recordings, which rates, which table."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

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


def test_each_methods_best_rate_is_taken_for_all(recipe, data, tmp_path, monkeypatch, capsys):
    best = dict(zip(recipe.METHODS, (1e-3, 3e-3, 3e-4, 1e-3, 3e-3), strict=True))
    done = []

    def figures_of(run, arguments):
        done.append(run)
        valid = abs(run.rate - best[run.method])
        scores = {
            part: {kind: {"rate": rate} for kind in ("wer", "cer")}
            for part, rate in (("valid", valid), ("test", 0.1 * run.seed))
        }
        return {"scores": scores, "parameters": 1234, "seconds": 1.0, "max_new_tokens": 9}

    monkeypatch.setattr(recipe, "figures_of", figures_of)
    monkeypatch.setattr(recipe, "not_adapted", lambda task, most, arguments: {"wer": 0.1 * most, "cer": 0.5})
    monkeypatch.setattr(recipe, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(recipe, "CLIPS", {"train": 1, "valid": 1, "test": 1})
    words = ["--data", str(data), "--output", str(tmp_path / "runs"), "--tasks", "cs", "real-de"]
    monkeypatch.setattr(sys, "argv", ["languages.py", *words])
    recipe.main()
    tried = {(run.method, run.rate) for run in done if run.task == "real-de"}
    assert tried == set(best.items())
    assert {run.seed for run in done if run.task == "real-de"} == set(recipe.SEEDS)
    table = (tmp_path / "runs" / "tables.md").read_text()
    assert "| lora | 1,234 | 0.003 | 10.0 ± 10.0 | 10.0 ± 10.0 |" in table
    assert "| not adapted | 0 | |  | 50.0 |" in table and "| not adapted | 0 | |  | 90.0 |" in table
    assert table in capsys.readouterr().out
    config = done[0].config(recipe.argparse.Namespace(output=tmp_path, backbone="nano-whisper", epochs=1))
    assert config.language == "cs" and config.method == "full"


def test_the_backbone_as_it_is_hears_the_test_part(recipe, tmp_path, monkeypatch):
    class Transcriber:
        @classmethod
        def from_pretrained(cls, backbone, *, trim_encoder, device):
            assert backbone == "nano-whisper" and trim_encoder
            return cls()

        def transcribe(self, paths, language):
            assert language == "de" and self.max_new_tokens == 9
            return [SimpleNamespace(text={"a": "Ein Haus", "b": "zwei"}[path]) for path in paths]

    monkeypatch.setattr(recipe, "WhisperTranscriber", Transcriber)
    rows = [
        {"path": path, "text": text, "split": split}
        for path, text, split in (("a", "ein Haus.", "test"), ("b", "drei Autos", "test"), ("c", "x", "train"))
    ]
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "real-de.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = recipe.argparse.Namespace(output=tmp_path, backbone="nano-whisper")
    assert recipe.not_adapted("real-de", 9, arguments)["wer"] == 0.5
