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
from multiprocessing.connection import Connection
from pathlib import Path

from mambavox.errors import DivergedError, MambavoxError
from mambavox.evaluation.compare.cell import Cell, CellResult, CellStore


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
    warnings.filterwarnings("ignore", r".* recordings and \d+ were found")
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
    from mambavox.training.adapt import adapt
    from mambavox.training.predictions import read_predictions
    from mambavox.training.run_folder import PREDICTIONS_FILE

    config = cell.config
    try:
        result = adapt(config.replace(output=str(work)), resume=True)
    except DivergedError as error:
        return CellResult(cell.key, cell.task, config.to_mapping(), diverged=str(error))
    tested = [row for row in read_predictions(work / PREDICTIONS_FILE) if row.part == "test"]
    labels = sorted({row.label for row in tested} | {row.predicted for row in tested})
    kept = next(row for row in result.learning_curve if row["epoch"] == result.best_epoch)
    return CellResult(
        key=cell.key,
        task=cell.task,
        config=config.to_mapping(),
        valid_accuracy=result.scores["valid"].accuracy if "valid" in result.scores else None,
        valid_loss=kept.get("valid_loss"),
        labels=tuple(labels),
        recordings=recordings_fingerprint(tested, config.data or ""),
        targets=tuple(labels.index(row.label) for row in tested),
        predictions=tuple(labels.index(row.predicted) for row in tested),
        selects_on_test=result.selects_on_test,
        parameters=dict(result.parameters),
        clips=dict(result.clips),
        seconds=result.seconds,
        notes=tuple(result.notes),
        device=result.device,
        versions=dict(result.versions),
    )
