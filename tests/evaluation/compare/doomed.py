"""A worker that dies of some cells, for the tests of its employer."""

import os
from multiprocessing.connection import Connection

from mambavox.evaluation.compare.cell import Cell, CellResult, CellStore, Measure


def serve(connection: Connection, folder: str, gpu: str | None) -> None:
    """Answer cells without training; a linear probe kills the process."""
    while True:
        cell: Cell = connection.recv()
        if cell.config.method == "linear":
            os._exit(9)
        result = CellResult(
            cell.key,
            cell.task,
            cell.config.to_mapping(),
            measures={"accuracy": Measure((1.0,), (1.0,))},
            device=f"{os.getpid()} {gpu}",
        )
        CellStore(folder).write(result)
        connection.send(None)
