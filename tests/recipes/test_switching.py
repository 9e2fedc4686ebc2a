"""The recipe that measures the switching of languages: which runs, which recordings, what is counted."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "recognition"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    import switching

    yield switching
    sys.modules.pop("switching", None)


@pytest.fixture
def runs(tmp_path):
    """Two languages of which the rate 0.003 was run in both, and a third one without that method."""
    names = {"ca": ("lora-0.001-seed0", "lora-0.003-seed0"), "tr": ("lora-0.003-seed0",), "sw": ("full-0.003-seed0",)}
    for task, own in names.items():
        for name in own:
            (tmp_path / task / name).mkdir(parents=True)
            (tmp_path / task / name / "metrics.json").write_text("{}")
    (tmp_path / "manifests").mkdir()
    for task in names:
        rows = [{"path": f"{task}{number}.flac", "split": ("train", "test")[number % 2]} for number in range(6)]
        (tmp_path / "manifests" / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_rate_that_all_languages_have_is_taken(recipe, runs):
    found = recipe.chosen_runs(runs, "lora", 0)
    assert found == {task: runs / task / "lora-0.003-seed0" for task in ("ca", "tr")}
    with pytest.raises(SystemExit, match="no finished run of dora with seed 0"):
        recipe.chosen_runs(runs, "dora", 0)
    assert recipe.test_part(runs / "manifests" / "ca.jsonl", 2) == ["ca1.flac", "ca3.flac"]


@pytest.mark.parametrize("wrong", [None, "ca3.flac"])
def test_transcripts_that_differ_are_counted(recipe, runs, monkeypatch, wrong):
    batches = []

    class Transcriber:
        def __init__(self, *folders, trim_encoder, device):
            assert trim_encoder is False
            self.alone = len(folders) == 1

        @classmethod
        def from_pretrained(cls, *folders, **options):
            return cls(*folders, **options)

        def switch(self, language):
            return 0.002

        def transcribe(self, paths, language=None):
            assert (language is None) == self.alone
            batches.append((list(paths), language))
            mixed = isinstance(language, list)
            return [SimpleNamespace(text=path + "!" * (mixed and path == wrong)) for path in paths]

    monkeypatch.setattr(recipe, "WhisperTranscriber", Transcriber)
    found = recipe.switching(recipe.chosen_runs(runs, "lora", 0), runs / "manifests", 40)
    assert found["languages"] == ["ca", "tr"] and found["recordings"] == 6
    assert found["switch_ms"] == {"median": 2.0, "95 %": 2.0}
    assert found["differ_switched"] == 0 and found["differ_mixed"] == (wrong is not None)
    assert batches[-1][0][:2] == ["ca1.flac", "tr1.flac"] and batches[-1][1][:2] == ["ca", "tr"]
