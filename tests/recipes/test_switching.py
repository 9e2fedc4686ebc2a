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
    """Runs of two languages that have ended, and of a third one that has not."""
    for task in ("ca", "tr", "sw"):
        (tmp_path / task).mkdir()
        (tmp_path / task / "run.yaml").write_text(f"data: {tmp_path}/{task}.jsonl\n")
        rows = [{"path": f"{task}{number}.flac", "split": ("train", "test")[number % 2]} for number in range(6)]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        if task != "sw":
            (tmp_path / task / "metrics.json").write_text("{}")
    return tmp_path


def test_the_runs_that_have_ended_are_taken(recipe, runs):
    assert recipe.finished_runs(runs) == {task: runs / task for task in ("ca", "tr")}
    with pytest.raises(SystemExit, match="holds no finished run"):
        recipe.finished_runs(runs / "ca")
    assert recipe.test_recordings(runs / "ca", 2) == [f"{runs}/ca1.flac", f"{runs}/ca3.flac"]


@pytest.mark.parametrize("wrong", [None, "ca3"])
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
            return [SimpleNamespace(text=path + "!" * (mixed and Path(path).stem == wrong)) for path in paths]

    monkeypatch.setattr(recipe, "WhisperTranscriber", Transcriber)
    found = recipe.switching(recipe.finished_runs(runs), 40)
    assert found["languages"] == ["ca", "tr"] and found["recordings"] == 6
    assert found["switch_ms"] == {"median": 2.0, "95 %": 2.0}
    assert found["differ_switched"] == 0 and found["differ_mixed"] == (wrong is not None)
    assert [Path(path).name for path in batches[-1][0][:2]] == ["ca1.flac", "tr1.flac"] and batches[-1][1][:2] == [
        "ca",
        "tr",
    ]
