"""A tiny comparison: three folds of tones, a tiny AST, cells that run in the test's own process."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_recordings

from mambavox.evaluation.compare import compare as compare_module
from mambavox.evaluation.compare.cell import Cell, CellResult, CellStore, Measure
from mambavox.evaluation.compare.folds import Fold
from mambavox.evaluation.compare.grid import Grid, Task, Variant
from mambavox.evaluation.compare.plan import Plan
from mambavox.evaluation.compare.worker import run_cell

SETTINGS = {"epochs": 1, "batch_size": 4, "device": "cpu", "tensorboard": False}


@pytest.fixture(scope="session")
def folded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of 12 short recordings of two classes in three folds."""
    folder = write_recordings(tmp_path_factory.mktemp("data") / "folded")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        del row["split"]
        row["fold"] = 1 + number % 3
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture
def grid(backbone: Callable[[str], str], tones: str) -> Callable[..., Grid]:
    """Two variants on one task with one seed and one rate, with whatever is to be different."""

    def make(**changes: Any) -> Grid:
        settings = {key: value for key, value in SETTINGS.items() if key != "tensorboard"}
        values: dict[str, Any] = {
            "name": "tiny",
            "variants": (Variant("small", "bottleneck", {"bottleneck_dim": 2}), Variant("probe", "linear")),
            "tasks": (Task("tones", tones),),
            "backbone": backbone("ast"),
            "seeds": (0,),
            "settings": settings,
            "learning_rates": (0.01,),
        }
        return Grid(**{**values, **changes})

    return make


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run cells in this process; the keys of those that were run."""
    ran: list[str] = []

    def run_cells(cells: Sequence[Cell], store: CellStore, workers: int, console: Any) -> None:
        for cell in cells:
            ran.append(cell.key)
            run_cell(cell, store.folder)

    monkeypatch.setattr(compare_module, "run_cells", run_cells)
    return ran


@pytest.fixture
def imagined(tmp_path: Path) -> Callable[..., tuple[Plan, CellStore]]:
    """A plan without data, and a store that says how each of its cells went."""

    def make(
        grid: Grid, correct: Callable[[Cell], Sequence[bool] | None], folds: Sequence[str | None] = (None,)
    ) -> tuple[Plan, CellStore]:
        settings = [{} if name is None else {"test_fold": name} for name in folds]
        each = tuple(Fold(name, values) for name, values in zip(folds, settings, strict=True))
        names = [task.name for task in grid.tasks]
        plan = Plan(grid, dict.fromkeys(names, each), dict.fromkeys(names, "data"), dict.fromkeys(names, "backbone"))
        store = CellStore(tmp_path / "store")
        for task, variant in plan.pairs():
            for rate in grid.rates(variant, task):
                for cell in plan.search_cells(task, variant) + plan.final_cells(task, variant, rate):
                    items = correct(cell)
                    if items is not None:
                        store.write(imagined_result(cell, items))
        return plan, store

    return make


def imagined_result(cell: Cell, correct: Sequence[bool], **changes: Any) -> CellResult:
    """What a cell might have given: its valid accuracy is higher the nearer its rate lies to 0.01."""
    values: dict[str, Any] = {
        "valid": {"accuracy": 1 - abs(np.log10((cell.config.learning_rate or 1) / 0.01)) / 10, "loss": 1.0},
        "tested_on": f"{cell.task} {cell.fold} {len(correct)}",
        "measures": {"accuracy": Measure(tuple(map(float, correct)), (1.0,) * len(correct))},
        "parameters": {"adapter": 100 * len(cell.config.method), "head": 1, "total": 1, "share_of_backbone": 0.1},
        "seconds": 1.0,
        "notes": ("as told",),
        "device": "cpu",
    }
    return CellResult(cell.key, cell.task, cell.config.to_mapping(), **{**values, **changes})
