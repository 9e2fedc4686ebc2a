"""Five methods on four sets of real recordings: learning rates from one grid, several seeds, one table.

Each cell (task, method, learning rate, fold, seed) is one ``adapt`` run whose figures are written once and never
computed again, so that a killed recipe goes on where it was:

    python recipes/real_recordings.py --data ../shared/data --output runs/real-recordings --workers 2

Protocols. ``fsdd``: the corpus's own train, valid and test recordings. ``arabic_speech_commands``: tested on the six
speakers of the official valid part; three of the eighteen training speakers choose. ``esc10`` and ``coffee_intents``:
four folds (official; stratified), tested on one, chosen on the one before, trained on two; accuracy over all four. The
learning rate of each method and task is the one with the best accuracy on the *valid* part, seed 0, first fold.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

GRID = (3e-4, 2e-3, 1e-2)
SEEDS = (0, 1, 2)
MAMBADAPTER = {"bottleneck_dim": 12, "d_state": 8, "d_conv": 24, "expand": 2}
# About 20,000 trained parameters for each of the three adapters on nano-ast. Row of the table: method and its options.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mambadapter": ("mambadapter", MAMBADAPTER),
    "bottleneck": ("bottleneck", {"bottleneck_dim": 8}),
    "lora": ("lora", {"r": 4, "lora_alpha": 8}),
    "linear": ("linear", {}),
    "full": ("full", {}),
}
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "mambadapter-paper-init": ("mambadapter", {**MAMBADAPTER, "init": "paper"}),
}


@dataclass(frozen=True)
class Task:
    """One data set and its protocol."""

    name: str
    epochs: int
    folds: tuple[str | None, ...] = (None,)
    batch_size: int = 32
    settings: tuple[tuple[str, Any], ...] = ()


TASKS = (
    Task("fsdd", epochs=8),
    Task(
        "arabic_speech_commands",
        epochs=15,
        settings=(("group_column", "speaker"), ("valid_fraction", 1 / 6)),
    ),
    Task("esc10", epochs=12, folds=("1", "2", "3", "4"), batch_size=16),
    Task("coffee_intents", epochs=15, folds=("1", "2", "3", "4"), batch_size=8),
)


@dataclass(frozen=True)
class Cell:
    """One run."""

    task: str
    method: str
    learning_rate: float
    fold: str | None
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.task}-{self.method}-{self.learning_rate:g}-fold{self.fold}-seed{self.seed}.json"


def write_manifest(data: Path, task: Task, folder: Path) -> Path:
    """The corpus's manifest with absolute paths and the parts of the protocol."""
    lines = (data / task.name / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["path"] = str((data / task.name / row["path"]).resolve())
    if task.name == "arabic_speech_commands":
        for row in rows:
            row["split"] = {"train": "train", "valid": "test"}[row["split"]]
    if task.name == "coffee_intents":
        from sklearn.model_selection import StratifiedKFold

        folds = StratifiedKFold(4, shuffle=True, random_state=0).split(rows, [row["label"] for row in rows])
        for number, (_, chosen) in enumerate(folds, start=1):
            for index in chosen:
                rows[index]["fold"] = number
                del rows[index]["split"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task.name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run_cell(cell: Cell, manifest: str, backbone: str, output: str) -> dict[str, Any]:
    """Adapt once, keep the figures, drop the weights."""
    import shutil

    import torch

    from mambavox.training.adapt import adapt
    from mambavox.training.config import AdaptConfig

    torch.set_num_threads(1)
    task = next(task for task in TASKS if task.name == cell.task)
    method, options = {**METHODS, **ABLATIONS}[cell.method]
    run = Path(output) / "work" / cell.file_name.removesuffix(".json")
    config = AdaptConfig(
        data=manifest,
        output=str(run),
        backbone=backbone,
        method=method,
        method_options=options,
        test_fold=cell.fold,
        epochs=task.epochs,
        batch_size=task.batch_size,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        tensorboard=False,
        device="cpu",
        **dict(task.settings),
    )
    result = adapt(config, overwrite=True)
    best = next(row for row in result.learning_curve if row["epoch"] == result.best_epoch)
    figures = {
        **asdict(cell),
        "valid_accuracy": result.scores["valid"].accuracy,
        "valid_loss": best["valid_loss"],
        "test_clips": result.scores["test"].clips,
        "test_correct": result.scores["test"].correct,
        "parameters": result.parameters["adapter"],
        "seconds": result.seconds,
    }
    shutil.rmtree(run)
    path = Path(output) / "cells" / cell.file_name
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return figures


def run_all(cells: list[Cell], arguments: argparse.Namespace) -> dict[Cell, dict[str, Any]]:
    """Run what has not been run, side by side, and return every cell's figures."""
    folder = arguments.output / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    done = {
        cell: json.loads((folder / cell.file_name).read_text(encoding="utf-8"))
        for cell in cells
        if (folder / cell.file_name).is_file()
    }
    waiting = [cell for cell in cells if cell not in done]
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(
                run_cell, cell, str(arguments.manifests[cell.task]), arguments.backbone, str(arguments.output)
            ): cell
            for cell in waiting
        }
        for number, future in enumerate(as_completed(futures), start=1):
            cell = futures[future]
            done[cell] = future.result()
            accuracy = 100 * done[cell]["test_correct"] / done[cell]["test_clips"]
            print(
                f"[{number}/{len(waiting)}] {cell.task} {cell.method} lr {cell.learning_rate:g} fold {cell.fold} "
                f"seed {cell.seed}: valid {100 * done[cell]['valid_accuracy']:.1f} %, test {accuracy:.1f} %, "
                f"{done[cell]['seconds']:.0f} s",
                flush=True,
            )
    return done


def grid_cells(task: Task, methods: list[str]) -> Iterator[Cell]:
    for method in methods:
        for learning_rate in GRID:
            yield Cell(task.name, method, learning_rate, task.folds[0], 0)


def final_cells(task: Task, rates: dict[str, float]) -> Iterator[Cell]:
    for method in rates:
        for seed in SEEDS:
            for fold in task.folds:
                yield Cell(task.name, method, rates[method], fold, seed)


def best_rates(task: Task, methods: list[str], done: dict[Cell, dict[str, Any]]) -> dict[str, float]:
    """Learning rate of each method with the best valid accuracy; among equals the lowest valid loss."""

    def quality(cell: Cell) -> tuple[float, float]:
        return done[cell]["valid_accuracy"], -done[cell]["valid_loss"]

    return {method: max(grid_cells(task, [method]), key=quality).learning_rate for method in methods}


def summary(task: Task, rates: dict[str, float], done: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for method in rates:
        accuracies, seconds = [], []
        for seed in SEEDS:
            runs = [done[cell] for cell in final_cells(task, rates) if cell.method == method and cell.seed == seed]
            accuracies.append(100 * sum(run["test_correct"] for run in runs) / sum(run["test_clips"] for run in runs))
            seconds += [run["seconds"] for run in runs]
        rows.append(
            {
                "task": task.name,
                "method": method,
                "parameters": runs[0]["parameters"],
                "learning_rate": rates[method],
                "mean": statistics.mean(accuracies),
                "deviation": statistics.stdev(accuracies),
                "clips": sum(run["test_clips"] for run in runs),
                "seconds": statistics.mean(seconds),
            }
        )
    return rows


def table(rows: list[dict[str, Any]], tasks: list[Task]) -> str:
    lines = [
        "| method | trained parameters (head not counted) | " + " | ".join(task.name for task in tasks) + " |",
        "|---|--:|" + "--:|" * len(tasks),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {row["task"]: row for row in rows if row["method"] == method}
        cells = [
            f"{row['mean']:.1f} ± {row['deviation']:.1f} (lr {row['learning_rate']:g})"
            for row in (own[task.name] for task in tasks)
        ]
        lines.append(f"| {method} | {next(iter(own.values()))['parameters']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("runs/real-recordings"))
    parser.add_argument("--backbone", default="nano-ast")
    parser.add_argument("--tasks", nargs="+", choices=[task.name for task in TASKS])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *ABLATIONS], default=list(METHODS))
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    arguments = parser.parse_args()
    # Before the workers load torch: threads that spin for each other's core cost more than they give.
    os.environ["OMP_NUM_THREADS"] = "1"

    tasks = [task for task in TASKS if not arguments.tasks or task.name in arguments.tasks]
    arguments.manifests = {
        task.name: write_manifest(arguments.data, task, arguments.output / "manifests") for task in tasks
    }
    rows = []
    for task in tasks:
        done = run_all(list(grid_cells(task, arguments.methods)), arguments)
        rates = best_rates(task, arguments.methods, done)
        done |= run_all(list(final_cells(task, rates)), arguments)
        rows += summary(task, rates, done)
        (arguments.output / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print("\n" + table(rows, tasks))


if __name__ == "__main__":
    main()
