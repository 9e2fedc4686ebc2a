"""Figures of a comparison whose cells' results are made up: rates, scores, differences, failures, tables, plots."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.compare.conftest import imagined_result

from mambavox.errors import RunError
from mambavox.evaluation.compare.cell import Cell
from mambavox.evaluation.compare.compare import final_cells, write_report
from mambavox.evaluation.compare.grid import Grid, Task, Variant
from mambavox.evaluation.compare.plots import option_planes
from mambavox.evaluation.compare.presets import surface
from mambavox.evaluation.compare.summary import Summary, choose_rate, summarise
from mambavox.evaluation.compare.tables import csv_text, latex, markdown

OURS, LORA, PROBE = Variant("ours", "mambadapter"), Variant("lora", "lora", {"r": 2}), Variant("probe_1", "linear")
TASKS = (Task("t", "t"), Task("u", "u"))
# Of each 40 test recordings.
CORRECT = {"mambadapter": 36, "lora": 20, "linear": 19}


def items(cell: Cell) -> list[bool]:
    """More are right with a later seed; the probe is right on other ones than LoRA."""
    first = 3 if cell.config.method == "linear" else 0
    return [first <= number < first + CORRECT[cell.config.method] + cell.config.seed for number in range(40)]


@pytest.fixture
def summary(grid: Callable[..., Grid], imagined: Callable[..., Any]) -> Summary:
    """Three variants on two tasks of two folds, three seeds; the probe fails with one seed on one task."""

    def correct(cell: Cell) -> Sequence[bool] | None:
        failed = (cell.task, cell.config.method, cell.config.seed, cell.fold) == ("u", "linear", 1, "2")
        return None if failed else items(cell)

    compared = grid(variants=(OURS, LORA, PROBE), tasks=TASKS, seeds=(0, 1, 2), learning_rates=(1e-3, 1e-2, 1e-1))
    plan, store = imagined(compared, correct, folds=("1", "2"))
    failed = next(cell for cell in plan.final_cells(TASKS[1], PROBE, 1e-2) if (cell.config.seed, cell.fold) == (1, "2"))
    store.write_failure(failed.key, "Traceback\nOutOfMemory: no room")
    return summarise(plan, store)


def test_scores(summary: Summary) -> None:
    score = summary.scores["t", "ours"]
    assert score.values == (36 / 40, 37 / 40, 38 / 40)
    assert score.interval is not None
    assert score.interval.value == pytest.approx(37 / 40)
    assert score.deviation == pytest.approx(1 / 40)
    assert score.parameters == 100 * len("mambadapter")
    assert summary.mean(OURS) == pytest.approx(37 / 40)


def test_the_mean_over_folds_counts_them_alike(grid: Callable[..., Grid], imagined: Callable[..., Any]) -> None:
    compared = grid(variants=(LORA,))
    found = summarise(*imagined(compared, lambda cell: [True] if cell.fold == "1" else [False] * 9, folds=("1", "2")))
    assert found.scores["tones", "lora"].values == (0.5,)
    assert found.scores["tones", "lora"].deviation is None


def test_differences_are_to_the_best_baseline_of_each_task(summary: Summary) -> None:
    assert summary.references == {"t": "lora", "u": "lora"}
    ours, probe = summary.scores["t", "ours"].difference, summary.scores["t", "probe_1"].difference
    assert ours is not None
    assert ours.value == pytest.approx(16 / 40)
    assert ours.verdict() == "ahead"
    assert probe is not None
    assert probe.verdict() == "no clear difference"
    assert summary.scores["t", "lora"].difference is None


def test_a_reference_by_name(grid: Callable[..., Grid], imagined: Callable[..., Any]) -> None:
    compared = grid(variants=(OURS, PROBE), reference="ours")
    found = summarise(*imagined(compared, items))
    assert found.references == {"tones": "ours"}
    difference = found.scores["tones", "probe_1"].difference
    assert difference is not None
    assert difference.verdict() == "behind"


def test_a_failed_run_leaves_no_figure(summary: Summary) -> None:
    score = summary.scores["u", "probe_1"]
    assert (score.interval, score.difference, score.values) == (None, None, ())
    assert score.failures == ("fold 2, seed 1: OutOfMemory: no room",)
    assert summary.failures == ["u, probe_1: fold 2, seed 1: OutOfMemory: no room"]
    assert summary.mean(PROBE) is None
    assert summary.scores["u", "ours"].interval is not None


def test_the_rate_is_chosen_on_the_valid_part_of_the_first_seed_and_fold(
    grid: Callable[..., Grid], imagined: Callable[..., Any]
) -> None:
    compared = grid(variants=(LORA,), seeds=(5, 6), learning_rates=(1e-3, 1e-2, 1e-1))
    plan, store = imagined(compared, items, folds=("1", "2"))
    (task,) = compared.tasks
    searched = plan.search_cells(task, LORA)
    assert [(cell.config.seed, cell.fold, cell.config.learning_rate) for cell in searched] == [
        (5, "1", 1e-3),
        (5, "1", 1e-2),
        (5, "1", 1e-1),
    ]
    choice = choose_rate(plan, store, task, LORA)
    assert (choice.best, choice.edge, choice.given) == (1e-2, None, False)
    assert [rate for rate, _ in choice.tried] == [1e-3, 1e-2, 1e-1]
    # Among equals the lower loss; at the edge it is said.
    for cell, loss in zip(searched, (3.0, 2.0, 1.0), strict=True):
        store.write(imagined_result(cell, [True], valid={"accuracy": 0.5, "loss": loss}))
    choice = choose_rate(plan, store, task, LORA)
    assert (choice.best, choice.edge) == (1e-1, "highest")
    # A run that diverged is no choice.
    store.write(replace(imagined_result(searched[2], []), diverged="nan", valid={}))
    choice = choose_rate(plan, store, task, LORA)
    assert (choice.best, choice.edge, choice.tried[2]) == (1e-2, None, (1e-1, None))
    store.write(imagined_result(searched[0], [True], valid={"accuracy": 0.6, "loss": 1.0}))
    assert choose_rate(plan, store, task, LORA).edge == "lowest"
    assert {cell.config.learning_rate for cell in final_cells(plan, store)} == {1e-3}


def test_where_every_rate_failed_the_others_are_reported(
    grid: Callable[..., Grid], imagined: Callable[..., Any]
) -> None:
    compared = grid(variants=(LORA, PROBE), learning_rates=(1e-3, 1e-2))
    plan, store = imagined(compared, lambda cell: None if cell.config.method == "lora" else items(cell))
    for cell in plan.search_cells(compared.tasks[0], LORA):
        store.write(replace(imagined_result(cell, []), diverged="the loss is nan", valid={}))
    found = summarise(plan, store)
    assert found.scores["tones", "lora"].failures == ("every learning rate failed: the loss is nan",)
    assert "failed (1)" in markdown(found)
    assert "no run succeeded (0.001: none, 0.01: none)" in markdown(found)
    assert found.scores["tones", "probe_1"].interval is not None


def test_different_recordings_are_not_compared(grid: Callable[..., Grid], imagined: Callable[..., Any]) -> None:
    plan, store = imagined(grid(variants=(LORA, PROBE)), lambda cell: [True] * (3 + len(cell.config.method)))
    with pytest.raises(RunError, match="tested on different recordings"):
        summarise(plan, store)


def test_the_markdown(summary: Summary) -> None:
    text = markdown(replace(summary, grid=replace(summary.grid, remarks=("Beware.",)), optimistic=("u",)))
    for line in (
        "| method | parameters | t | u (optimistic) | mean |",
        "| ours | 1,100 | 92.5 ± 2.5 | 92.5 ± 2.5 | 92.5 |",
        "| probe_1 | 600 | 50.0 ± 2.5 | failed (1) | - |",
        "| lora | (reference) | (reference) |",
        "- t, ours: **0.01** (valid accuracy in %: 0.001: 90.0, 0.01: 100.0, 0.1: 90.0)",
        "- t: as told",
        "- u, probe_1: fold 2, seed 1: OutOfMemory: no room",
        "- Beware.",
    ):
        assert line in text.splitlines()
    assert ": ahead |" in text
    assert ": no clear difference | - |" in text


def test_the_csv(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(summary))))
    assert [(row["task"], row["variant"]) for row in rows] == [
        (task, name) for task in "tu" for name in ("ours", "lora", "probe_1")
    ]
    assert json.loads(rows[1]["options"]) == {"r": 2}
    assert [float(value) for value in rows[0]["values"].split()] == [0.9, 0.925, 0.95]
    assert float(rows[0]["low"]) < float(rows[0]["mean"]) < float(rows[0]["high"])
    assert (rows[0]["verdict"], rows[2]["reference"], rows[5]["mean"]) == ("ahead", "lora", "")


def test_the_latex(summary: Summary) -> None:
    lines = latex(summary).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrr}"
    assert r"ours & 1,100 & 92.5 $\pm$ 2.5 & 92.5 $\pm$ 2.5 & 92.5 \\" in lines
    assert any(line.startswith(r"probe\_1 & 600") for line in lines)


def test_the_report(summary: Summary, tmp_path: Path) -> None:
    write_report(summary, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "report.md",
        "results.csv",
        "results.json",
        "table.tex",
        "scores.png",
        "scores_parameters.png",
    }
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["references"] == {"t": "lora", "u": "lora"}
    assert content["scores"][0]["rate"]["tried"] == [[0.001, 0.9], [0.01, 1.0], [0.1, 0.9]]
    for picture in (tmp_path / "out").glob("*.png"):
        assert picture.stat().st_size > 10_000


def test_a_map_of_every_plane_that_is_crossed(
    grid: Callable[..., Grid], imagined: Callable[..., Any], tmp_path: Path
) -> None:
    variants = surface(()).variants
    assert option_planes(variants) == [("d_state", "d_conv"), ("d_conv", "expand")]
    assert option_planes(variants[:5]) == []
    found = summarise(
        *imagined(grid(variants=variants), lambda cell: list(np.arange(40) < cell.config.method_options["d_conv"]))
    )
    write_report(found, tmp_path / "out")
    assert (tmp_path / "out" / "scores_d_state_d_conv.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "scores_d_conv_expand.png").stat().st_size > 10_000
