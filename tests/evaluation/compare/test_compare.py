"""A whole comparison on tiny data, in this process: stages, folds, what is run again and what is not."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mambavox.errors import ConfigError, DataError
from mambavox.evaluation.compare.cell import CellStore
from mambavox.evaluation.compare.compare import compare, plan_jobs
from mambavox.evaluation.compare.grid import Grid, Task, Variant
from mambavox.evaluation.compare.listing import fit_variants, list_cells, list_variants
from mambavox.evaluation.compare.plan import make_plan
from mambavox.evaluation.compare.runner import run_planned
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.run import run as train


def test_all_folds_and_seeds_at_the_best_rate(
    grid: Callable[..., Grid], folded: str, tmp_path: Path, in_process: list[str]
) -> None:
    variant = grid().variants[0]
    compared = grid(variants=(variant,), tasks=(Task("folds", folded),), seeds=(0, 1), learning_rates=(1e-3, 0.1))
    summary = compare(compared, tmp_path)
    # Two rates, then two seeds on three folds, of which the first is known.
    assert len(in_process) == len(set(in_process)) == 2 + 2 * 3 - 1
    score = summary.scores["folds", variant.name]
    assert score.rate.best in (1e-3, 0.1)
    assert score.rate.edge is not None
    assert len(score.values) == 2
    store = CellStore(tmp_path)
    cells = make_plan(compared).final_cells(compared.tasks[0], variant, score.rate.best)
    assert [(cell.config.seed, cell.fold) for cell in cells] == [(s, f) for s in (0, 1) for f in ("1", "2", "3")]
    results = [store.read(cell) for cell in cells]
    accuracies = [result.measure.score for result in results if result]
    assert score.values[0] == pytest.approx(sum(accuracies[:3]) / 3)
    assert not any((tmp_path / "work").iterdir())
    assert not summary.failures


def test_a_cell_is_the_run_that_its_configuration_says(
    grid: Callable[..., Grid], tmp_path: Path, in_process: list[str]
) -> None:
    compared = grid()
    compare(compared, tmp_path)
    plan, (variant, _) = make_plan(compared), compared.variants
    (cell,) = plan.final_cells(compared.tasks[0], variant, 0.01)
    result = CellStore(tmp_path).read(cell)
    assert result is not None
    alone = train(ClassifyConfig.from_mapping({**result.config, "output": str(tmp_path / "alone")}))
    assert sum(result.measure.values) == alone.scores["test"]["correct"]
    assert len(result.measure.values) == alone.scores["test"]["recordings"] == 4
    assert result.valid["accuracy"] == alone.scores["valid"]["accuracy"]
    assert result.parameters == alone.parameters


def test_nothing_is_computed_twice(grid: Callable[..., Grid], tmp_path: Path, in_process: list[str]) -> None:
    first = compare(grid(), tmp_path)
    report = (tmp_path / "results.json").read_text()
    in_process.clear()
    assert compare(grid(), tmp_path) == first
    assert in_process == []
    assert (tmp_path / "results.json").read_text() == report
    # Another row, seed or name of a row: only what is new is run.
    more = (*grid().variants, Variant("more", "bottleneck", {"bottleneck_dim": 3}))
    compare(grid(variants=more), tmp_path)
    assert len(in_process) == 1
    compare(grid(seeds=(0, 1)), tmp_path)
    assert len(in_process) == 3
    compare(grid(variants=(replace(more[0], name="renamed"), *more[1:])), tmp_path)
    assert len(in_process) == 3


def test_a_damaged_result_is_named_and_computed_again(
    grid: Callable[..., Grid], tmp_path: Path, in_process: list[str]
) -> None:
    first = compare(grid(), tmp_path)
    damaged, kept = sorted((tmp_path / "cells").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    before = kept.read_bytes()
    in_process.clear()
    stream = io.StringIO()
    again = compare(grid(), tmp_path, console=Console(file=stream, width=500))
    assert in_process == [damaged.stem]
    assert f"{damaged.name}: is damaged" in stream.getvalue()
    assert kept.read_bytes() == before
    assert again.scores.keys() == first.scores.keys()
    assert [score.values for score in again.scores.values()] == [score.values for score in first.scores.values()]


def test_changed_recordings_are_new_cells(
    grid: Callable[..., Grid], folded: str, tmp_path: Path, in_process: list[str]
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(folded, data)
    compared = grid(variants=grid().variants[1:], tasks=(Task("t", str(data), folds=("1",)),))
    compare(compared, tmp_path / "out")
    assert len(in_process) == 1
    (data / "low_0.wav").write_bytes((data / "low_1.wav").read_bytes())
    compare(compared, tmp_path / "out")
    assert len(in_process) == 2


def test_a_failed_cell_is_reported_and_the_others_go_on(
    grid: Callable[..., Grid], tmp_path: Path, in_process: list[str]
) -> None:
    impossible = Variant("impossible", "bottleneck", {"bottleneck_dim": 0})
    compared = grid(variants=(impossible, *grid().variants), learning_rates=(1e-3, 1e-2))
    summary = compare(compared, tmp_path)
    (failure,) = summary.failures
    assert "every learning rate failed: bottleneck_dim is 0" in failure
    assert summary.scores["tones", "small"].interval is not None
    assert "failed (1)" in (tmp_path / "report.md").read_text()
    assert len(list((tmp_path / "failures").iterdir())) == 2
    # What failed is tried again, and nothing else.
    in_process.clear()
    compare(compared, tmp_path)
    assert [key.split("-")[2] for key in in_process] == ["bottleneck_dim=0"] * 2


def test_a_run_that_diverges_does_so_once(
    grid: Callable[..., Grid], tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mambavox.training.classify import task

    right = task.mean_cross_entropy
    monkeypatch.setattr(task, "mean_cross_entropy", lambda *args, **kwargs: right(*args, **kwargs) * float("nan"))
    summary = compare(grid(), tmp_path)
    assert all("the run has diverged" in failure for failure in summary.failures)
    assert len(summary.failures) == 2
    in_process.clear()
    assert compare(grid(), tmp_path).failures == summary.failures
    assert in_process == []


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"tasks": ()}, ConfigError, "no task to compare on"),
        ({"tasks": (Task("t", "nowhere"),)}, DataError, "nowhere"),
        (
            {"tasks": (Task("t", "TONES", settings={"test_fraction": 0.0, "split_column": "none"}),)},
            DataError,
            "no test",
        ),
        ({"tasks": (Task("t", "FOLDED", folds=("9",)),)}, DataError, "test_fold is 9"),
        ({"backbone": "no/such"}, ConfigError, "no/such"),
    ],
)
def test_mistakes_are_found_before_anything_is_run(
    grid: Callable[..., Grid], folded: str, tones: str, tmp_path: Path, changes: Any, error: type[Exception], words: str
) -> None:
    paths = {"TONES": tones, "FOLDED": folded}
    if "tasks" in changes:
        changes = {"tasks": tuple(replace(task, data=paths.get(task.data, task.data)) for task in changes["tasks"])}
    with pytest.raises(error, match=words):
        compare(grid(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rates_need_a_valid_part(grid: Callable[..., Grid], tones: str, tmp_path: Path) -> None:
    settings = {"split_column": "none", "valid_fraction": 0.0, "test_fraction": 0.3}
    compared = grid(tasks=(Task("t", tones, settings=settings),), learning_rates=(1e-3, 1e-2))
    with pytest.raises(ConfigError, match=r"no valid split to choose learning rates on.*x1"):
        make_plan(compared)
    assert make_plan(replace(compared, learning_rates=(1e-3,))).folds["t"][0].name is None


def test_jobs_in_two_stages(grid: Callable[..., Grid], tmp_path: Path) -> None:
    compared = grid(variants=grid().variants[1:], seeds=(0, 1), learning_rates=(1e-3, 1e-2))
    jobs, output, quiet = tmp_path / "jobs.txt", tmp_path / "out", Console(quiet=True)

    def run_all() -> None:
        for line in jobs.read_text().splitlines():
            words = line.split()
            assert words[:4] == ["mambavox", "compare", "--output", str(output)]
            assert run_planned(words[5], output, quiet) is None

    assert plan_jobs(compared, output, jobs) == ("search", 2)
    run_all()
    assert plan_jobs(compared, output, jobs) == ("final", 1)
    run_all()
    assert plan_jobs(compared, output, jobs) == ("final", 0)
    assert jobs.read_text() == ""
    with pytest.raises(DataError, match="no such planned cell"):
        run_planned("nothing", output, quiet)


def test_the_listing(grid: Callable[..., Grid], folded: str, tmp_path: Path, in_process: list[str]) -> None:
    compared = grid(tasks=(Task("folds", folded, folds=("2", "3")),), learning_rates=(1e-3, 1e-2))
    plan, store = make_plan(compared), CellStore(tmp_path)
    rows = list_cells(plan, store)
    assert len(rows) == 2 * (2 + 2)
    assert [row["learning_rate"] for row in rows[:4]] == [1e-3, 1e-2, None, None]
    assert [(row["stage"], row["fold"]) for row in rows[:4]] == [
        ("search", "2"),
        ("search", "2"),
        ("final", "2"),
        ("final", "3"),
    ]
    assert not any(row["done"] for row in rows)
    summary = compare(compared, tmp_path)
    rows = list_cells(plan, store)
    assert all(row["done"] for row in rows)
    assert rows[2]["learning_rate"] == summary.scores["folds", "small"].rate.best
    assert rows[0]["parameters"] == summary.scores["folds", "small"].parameters
    assert json.loads(json.dumps(rows)) == rows


def test_budgets_size_the_rows_that_have_no_size(grid: Callable[..., Grid]) -> None:
    variants = (
        Variant("b", "bottleneck"),
        Variant("fixed", "bottleneck", {"bottleneck_dim": 2}),
        Variant("p", "linear"),
    )
    fitted = fit_variants(grid(variants=variants), [400, 700])
    rows = list_variants(fitted)
    assert [row["variant"] for row in rows] == ["b bottleneck_dim=4", "b bottleneck_dim=9", "fixed", "p"]
    assert [row["bottleneck_dim"] for row in rows] == [4, 9, 2, None]
    assert [abs(row["parameters"] - wanted) < 33 for row, wanted in zip(rows, (400, 700), strict=False)] == [True, True]
