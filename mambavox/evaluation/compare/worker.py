"""The process that trains one cell after the other.

Nothing here imports torch before :func:`serve` has set what torch reads when it is imported.
"""

import multiprocessing
import os
import shutil
import signal
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambavox.errors import DataWarning, DivergedError, MambavoxError
from mambavox.evaluation.compare.cell import Cell, CellResult, CellStore, Measure, metric_of

if TYPE_CHECKING:
    from mambavox.runs.result import RunResult


def serve(connection: Connection, folder: str, gpu: str | None) -> None:
    """Train the cells that come through a connection, and answer each with its error or ``None``.

    Args:
        connection: of the process that sends cells.
        folder: of the grid's results.
        gpu: the one to train on, as ``CUDA_VISIBLE_DEVICES`` names it; ``None``: one CPU thread.
    """
    # Ctrl-C reaches the whole group; the process that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Said once, when the comparison was planned, and among the notes of every result.
    warnings.simplefilter("ignore", DataWarning)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    else:
        # Threads that spin for each other's core cost more than they give.
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch

        torch.set_num_threads(1)
    while True:
        try:
            cell: Cell = connection.recv()
        except EOFError:
            return
        connection.send(run_cell(cell, folder))


def _end_with_parent() -> None:
    """End this process with the one that started it: a killed comparison must not train on in the background."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_cell(cell: Cell, folder: str | Path) -> str | None:
    """Train a cell, continue it where an earlier attempt was killed, and keep its result.

    Args:
        cell: to be run.
        folder: of the grid's results.

    Returns:
        Why it failed, or ``None``; that is also written.
    """
    store = CellStore(folder)
    work = store.work(cell.key)
    try:
        store.write(_train(cell, work))
        error = None
    except Exception as caught:
        error = str(caught) if isinstance(caught, MambavoxError) else traceback.format_exc().strip()
        store.write_failure(cell.key, error)
    # What a failure left would only fail again.
    shutil.rmtree(work, ignore_errors=True)
    return error


def _train(cell: Cell, work: Path) -> CellResult:
    from mambavox.evaluation.compare.fingerprint import recordings_fingerprint
    from mambavox.runs.predictions import PREDICTIONS_FILE, read_predictions
    from mambavox.training.run import run

    config = cell.config
    metric = metric_of(config)
    try:
        result = run(config.replace(output=str(work)), resume=True)
    except DivergedError as error:
        return CellResult(cell.key, cell.task, config.to_mapping(), metric, diverged=str(error))
    # The plan has seen to it that there is one test split, whatever its name.
    tested = [row for row in read_predictions(work / PREDICTIONS_FILE) if row["split"] not in ("train", "valid")]
    kept = next(row for row in result.learning_curve if row["epoch"] == result.best_epoch)
    valid = {name: float(_score(result.scores["valid"], name)) for name in _METRICS if _has(result, name)}
    return CellResult(
        key=cell.key,
        task=cell.task,
        config=config.to_mapping(),
        metric=metric,
        valid={**valid, **({"loss": kept["valid_loss"]} if valid and "valid_loss" in kept else {})},
        tested_on=recordings_fingerprint(tested, config.given_data),
        measures=measures(tested),
        selects_on_test=result.selects_on_test,
        parameters=dict(result.parameters),
        recordings=dict(result.recordings),
        seconds=result.seconds,
        notes=tuple(result.notes),
        device=result.device,
        versions=dict(result.versions),
    )


_METRICS = ("accuracy", "wer", "cer")


def _has(result: "RunResult", metric: str) -> bool:
    return metric in result.scores.get("valid", {})


def _score(figures: Mapping[str, Any], metric: str) -> float:
    """A metric of a split: a number, or a rate with its interval."""
    found = figures[metric]
    return float(found["rate"] if isinstance(found, Mapping) else found)


def measures(tested: Sequence[Mapping[str, str]]) -> dict[str, Measure]:
    """What the scores of a run are made of, by metric.

    Args:
        tested: lines of ``predictions.csv``: with errors where they are transcripts.
    """
    if tested and "word_errors" in tested[0]:
        columns = {"wer": ("word_errors", "words"), "cer": ("character_errors", "characters")}
        return {
            metric: Measure(*(tuple(float(row[column]) for row in tested) for column in pair))
            for metric, pair in columns.items()
        }
    correct = tuple(float(row["target"] == row["predicted"]) for row in tested)
    return {"accuracy": Measure(correct, (1.0,) * len(correct))}
