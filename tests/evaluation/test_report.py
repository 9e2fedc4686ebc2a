"""Tables, plots and JSON of several runs."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mambavox.evaluation.report import HeardExample, comparison_table, plot_comparison, write_results
from mambavox.runs.result import RunResult
from mambavox.training.classify.objective import score


@pytest.fixture
def results() -> dict[str, RunResult]:
    """Results of two methods, as a run would give them."""
    first = RunResult(
        task="classify",
        method="mambadapter",
        backbone="nano-ast",
        scores={
            "valid": score([0, 1], [0, 1]).to_mapping(),
            "test": score([0, 1, 1, 0], [0, 1, 1, 1]).to_mapping(),
        },
        learning_curve=[
            {"epoch": n, "train_loss": 1 / n, "valid_loss": 1 / n, "valid_accuracy": n / 4} for n in (1, 2, 3)
        ],
        best_epoch=3,
        parameters={"adapter": 12_345, "head": 2_316, "total": 14_661, "share_of_backbone": 0.0041},
        seconds=12.34,
        learning_rate=5e-3,
        recordings={"train": 10, "valid": 2, "test": 4},
        hours={"train": 0.1, "valid": 0.02, "test": 0.04},
        left_out=[],
        notes=[],
        device="cpu",
        versions={"torch": "2"},
    )
    bigger = {"adapter": 3_000_000, "head": 2_316, "total": 3_002_316, "share_of_backbone": 1.0}
    return {"mambadapter": first, "full": replace(first, method="full", parameters=bigger)}  # type: ignore[arg-type]


def test_table(results: dict[str, RunResult]) -> None:
    stream = io.StringIO()
    Console(file=stream, width=140).print(comparison_table(results))
    text = stream.getvalue()
    for expected in (
        "mambadapter",
        "14,661",
        "2,316 included",
        "0.41%",
        "75.0 % [30.1, 95.4]",
        "12.3",
        "3,002,316",
        "100.00%",
    ):
        assert expected in text
    assert "test accuracy" in text


def test_json(results: dict[str, RunResult], tmp_path: Path) -> None:
    write_results(results, tmp_path / "results.json", task="tones")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["task"] == "tones"
    assert content["methods"]["full"]["scores"]["test"]["accuracy"] == 0.75
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_plot(results: dict[str, RunResult], tmp_path: Path) -> None:
    results = {name: replace(result, details={"labels": ["a", "b"]}) for name, result in results.items()}
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    for waveform in (noise, 0 * noise):
        plot_comparison(
            results,
            tmp_path / "report.png",
            "two methods",
            shown="mambadapter",
            confusion=np.array([[3, 1], [0, 4]]),
            example=HeardExample(waveform, "a", [("b", 0.7), ("a", 0.3)]),
        )
        content = (tmp_path / "report.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 20_000
