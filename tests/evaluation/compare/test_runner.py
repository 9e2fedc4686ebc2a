"""Workers that are processes: what dies, what is killed, what goes on."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from evaluation.compare import doomed
from rich.console import Console

from mambavox.errors import ConfigError
from mambavox.evaluation.compare import runner
from mambavox.evaluation.compare.cell import CellStore
from mambavox.evaluation.compare.compare import compare
from mambavox.evaluation.compare.grid import Grid, Task, Variant, parse_variant
from mambavox.evaluation.compare.plan import Plan
from mambavox.evaluation.compare.runner import run_cells, visible_gpus


@pytest.fixture
def plan(grid: Callable[..., Grid], imagined: Callable[..., Any]) -> Plan:
    """Three rows on one task."""
    rows = [Variant(f"r={r}", "lora", {"r": r}) for r in (1, 2)]
    return imagined(grid(variants=(rows[0], Variant("probe", "linear"), rows[1])), lambda cell: None)[0]


def test_a_process_that_dies_is_replaced(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "serve", doomed.serve)
    store, stream = CellStore(tmp_path), io.StringIO()
    cells = [cell for task, variant in plan.pairs() for cell in plan.final_cells(task, variant, 0.01)]
    run_cells(cells, store, 1, Console(file=stream, width=300))
    results = [store.read(cell) for cell in cells]
    assert [result is None for result in results] == [False, True, False]
    assert "its process ended with 9" in (store.failure(cells[1].key) or "")
    assert "FAILED: its process ended with 9" in stream.getvalue()
    assert not multiprocessing.active_children()


def test_each_worker_has_a_gpu_of_its_own(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "serve", doomed.serve)
    monkeypatch.setattr(runner, "visible_gpus", lambda: ["4", "7"])
    cells = [cell for task, variant in plan.pairs() for cell in plan.final_cells(task, variant, 0.01)]
    cells = [type(cell)(cell.task, cell.fold, cell.config.replace(device="cuda"), "d", "b") for cell in cells[::2]]
    store = CellStore(tmp_path)
    staff = [runner._Worker(store, gpu) for gpu in ("4", "7")]
    for worker, cell in zip(staff, cells, strict=True):
        left: Any = runner.queue.SimpleQueue()
        left.put(cell)
        worker.work_off(left, runner._Progress(1, store, Console(quiet=True)))
        worker.dismiss()
    results = [store.read(cell) for cell in cells]
    assert [result.device.split()[1] for result in results if result] == ["4", "7"]


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    assert visible_gpus() == ["5", "GPU-abc"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert visible_gpus() == []


def test_no_workers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers=0"):
        run_cells([], CellStore(tmp_path), 0, Console(quiet=True))


def test_sigkill_in_the_middle(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, in_process: list[str]
) -> None:
    """Killed with a cell under way: no process trains on, no finished cell is run again, the end is the same."""
    words = ["compare", "--task", f"tones={tones}", "--methods", "linear, lora r=1, lora r=2"]
    words += ["--learning-rates", "1e-2", "--seeds", "1", "--backbone", backbone("ast"), "--workers", "1"]
    words += ["--epochs", "5", "--batch-size", "1", "--device", "cpu", "--output", str(tmp_path / "broken")]
    command = [sys.executable, "-c", f"from mambavox.cli import app; app({words!r})"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    cells = tmp_path / "broken" / "cells"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 200
        begun = "*/checkpoints/*/trainer_state.json"
        while process.poll() is None and not (any(cells.glob("*.json")) and any((cells.parent / "work").glob(begun))):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    finished = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 1 <= len(finished) < 3
    assert any((tmp_path / "broken" / "work").iterdir())

    grid = Grid(
        "again",
        tuple(map(parse_variant, ("linear", "lora r=1", "lora r=2"))),
        (Task("tones", tones),),
        backbone("ast"),
        seeds=(0,),
        settings={"epochs": 5, "batch_size": 1, "device": "cpu"},
        learning_rates=(1e-2,),
    )
    compare(grid, tmp_path / "broken")
    assert len(in_process) == 3 - len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    compare(grid, tmp_path / "whole")
    names = {path.name for path in cells.iterdir()}
    assert names == {path.name for path in (tmp_path / "whole" / "cells").iterdir()}
    for name in names:
        broken, whole = (
            json.loads((tmp_path / output / "cells" / name).read_text())["result"] for output in ("broken", "whole")
        )
        assert (broken["measures"], broken["valid"]) == (whole["measures"], whole["valid"])
    assert not any((tmp_path / "broken" / "work").iterdir())
