"""The plots that a run leaves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambavox.runs import plots

pytestmark = pytest.mark.usefixtures("plots")

CURVE = [{"epoch": n, "train_loss": 1 / n, "valid_loss": 1 / n, "valid_accuracy": n / 4} for n in (1, 2)]


def _said(name: str, errors: int) -> dict[str, Any]:
    rates = {"wer": errors / 4, "cer": errors / 20, "word_errors": errors, "words": 4}
    return {"recording": name, **rates, "character_errors": errors, "characters": 20}


def test_confusions_are_counted_as_the_file_says() -> None:
    pairs = [("a", "a"), ("a", "b"), ("a", "b"), ("b", "b")]
    rows = [{"target": target, "predicted": predicted} for target, predicted in pairs]
    np.testing.assert_array_equal(plots.count_confusions(rows, ["a", "b", "c"]), [[1, 2, 0], [0, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("number", [2, 41])
def test_plots_of_classes(tmp_path: Path, number: int) -> None:
    labels = [f"class ${index}" for index in range(number)]
    rows = [{"target": label, "predicted": labels[index // 2]} for index, label in enumerate(labels)]
    problem = plots.draw_run(tmp_path, CURVE, 2, {"valid": rows, "test": rows}, labels, "a run")
    assert problem is None
    assert plots.plots_in(tmp_path) == ["curve.png", "confusion.png"]


def test_plots_of_transcripts(tmp_path: Path) -> None:
    splits = {"valid": [], "test-clean": [_said("a.wav", 0), _said("b.wav", 9)], "test-other": [_said("c.wav", 0)]}
    curve = [{"epoch": 1, "train_loss": 1.0, "valid_wer": 0.5, "valid_cer": 0.2}]
    assert plots.draw_run(tmp_path, curve, 1, splits, None, "a run") is None
    assert plots.plots_in(tmp_path) == ["curve.png", "errors.png"]


def test_a_run_without_matplotlib_or_with_a_plot_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"target": "unknown", "predicted": "a"}]
    problem = plots.draw_run(tmp_path, CURVE, 2, {"test": rows}, ["a"], "a run")
    assert problem is not None and "no plots are drawn" in problem
    monkeypatch.setattr(plots, "can_draw", lambda: False)
    for problem in (
        plots.draw_run(tmp_path / "gone", CURVE, 2, {"test": rows}, ["a"], "a run"),
        plots.draw_predictions(tmp_path / "gone", {"test": rows}, ["a"], "a run"),
    ):
        assert problem is not None and "pip install matplotlib" in problem
