"""Run cells side by side: each worker is a process that trains one cell after the other."""

import json
import os
import queue
import shlex
import threading
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from mambavox.errors import ConfigError, DataError, RunError
from mambavox.evaluation.compare.cell import Cell, CellStore
from mambavox.evaluation.compare.worker import run_cell, serve
from mambavox.files import to_json, write_atomically

_GPUS = "CUDA_VISIBLE_DEVICES"


def waiting_cells(cells: Sequence[Cell], store: CellStore, console: Console) -> list[Cell]:
    """The cells that have no result yet, each once; damaged results are named.

    Args:
        cells: that are wanted.
        store: of their results.
        console: where damage is told.
    """
    waiting = {}
    for cell in cells:
        try:
            if store.read(cell) is None:
                waiting[cell.key] = cell
        except RunError as error:
            console.print(f"{error}", style="yellow", markup=False)
            waiting[cell.key] = cell
    return list(waiting.values())


def run_cells(cells: Sequence[Cell], store: CellStore, workers: int, console: Console) -> None:
    """Run cells; one that fails, or whose process dies, leaves its error in the store and the others go on.

    Args:
        cells: without results.
        store: of their results.
        workers: processes side by side. On GPUs each has one of them to itself in turn; on the CPU each has one
            thread, so that the figures do not depend on the number of workers.
        console: gets a line for each cell.

    Raises:
        ConfigError: ``workers`` is below 1.
    """
    if workers < 1:
        raise ConfigError(f"workers={workers}; expected at least 1")
    left: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in cells:
        left.put(cell)
    gpus = visible_gpus() if any(cell.config.device != "cpu" for cell in cells) else []
    progress = _Progress(len(cells), store, console)
    staff = [_Worker(store, gpus[number % len(gpus)] if gpus else None) for number in range(min(workers, len(cells)))]
    threads = [threading.Thread(target=worker.work_off, args=(left, progress), daemon=True) for worker in staff]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for worker in staff:
            worker.dismiss()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get(_GPUS, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def write_jobs(cells: Sequence[Cell], store: CellStore, path: Path) -> None:
    """Write a file of shell commands, one a cell, for a cluster's scheduler.

    What a command is to run lies in ``planned/`` of the store's folder, which every node must see.

    Args:
        cells: to be run.
        store: of their results.
        path: the file.
    """
    folder = store.folder.absolute()
    (folder / "planned").mkdir(parents=True, exist_ok=True)
    lines = []
    for cell in cells:
        planned = folder / "planned" / f"{cell.key}.json"
        write_atomically(planned, to_json(cell.to_mapping()))
        lines.append(f"mambavox compare --output {shlex.quote(str(folder))} --cell {shlex.quote(cell.key)}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines))


def run_planned(key: str, folder: str | Path, console: Console) -> str | None:
    """Run one cell of a file of jobs in this process, unless it has a result.

    Args:
        key: of the cell.
        folder: of the grid's results.
        console: where damage is told.

    Returns:
        Why it failed, or ``None``.

    Raises:
        DataError: no such cell was planned, or another version of the package planned it.
    """
    path = Path(folder) / "planned" / f"{key}.json"
    if not path.is_file():
        raise DataError(f"{path}: there is no such planned cell; write the jobs with mambavox compare --jobs-file")
    cell = Cell.from_mapping(json.loads(path.read_text(encoding="utf-8")))
    if cell.key != key:
        raise DataError(f"{path}: was planned with another version of mambavox; write the jobs again with --jobs-file")
    store = CellStore(folder)
    return run_cell(cell, folder) if waiting_cells([cell], store, console) else None


class _Progress:
    """Counts the cells that are done, and tells each."""

    def __init__(self, total: int, store: CellStore, console: Console) -> None:
        self.total = total
        self.store = store
        self.console = console
        self.number = 0
        self.lock = threading.Lock()

    def tell(self, cell: Cell, error: str | None) -> None:
        with self.lock:
            self.number += 1
            line = f"[{self.number}/{self.total}] {cell.key.rsplit('-', 1)[0]}: "
            result = None if error else self.store.read(cell)
            if result is None:
                line += f"FAILED: {(error or 'no result').splitlines()[-1]}"
            elif result.diverged:
                line += "diverged"
            else:
                line += f"test {result.metric} {result.measure.score:.1%}, {result.seconds:.0f} s"
                if result.metric in result.valid:
                    line += f", valid {result.valid[result.metric]:.1%}"
            self.console.print(line, markup=False, style="red" if result is None else None)


class _Worker:
    """A process that trains cells, begun again when it dies."""

    def __init__(self, store: CellStore, gpu: str | None) -> None:
        self.store = store
        self.gpu = gpu
        self.process: Any = None
        self.connection: Any = None
        self.dismissed = threading.Event()

    def work_off(self, left: "queue.SimpleQueue[Cell]", progress: _Progress) -> None:
        """Run cells until none is left."""
        while not self.dismissed.is_set():
            try:
                cell = left.get_nowait()
            except queue.Empty:
                return
            if self.process is None:
                self._start()
            try:
                self.connection.send(cell)
                error = self.connection.recv()
            except (EOFError, OSError):
                if self.dismissed.is_set():
                    return
                self.process.join()
                error = (
                    f"its process ended with {self.process.exitcode}; if that is -9, the machine ran out of memory: "
                    "use fewer --workers, or a smaller batch_size"
                )
                self.store.write_failure(cell.key, error)
                self.process = None
            progress.tell(cell, error)

    def dismiss(self) -> None:
        """End the process, whatever it is doing; a cell that is under way is continued another time."""
        self.dismissed.set()
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def _start(self) -> None:
        # Not forked: CUDA and OpenMP do not survive that.
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, str(self.store.folder), self.gpu))
        self.process.start()
        # With our copy open we would never hear that the process died.
        theirs.close()
        if self.dismissed.is_set():
            self.process.kill()
