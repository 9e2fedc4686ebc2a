"""Run a grid and report it."""

from pathlib import Path

from rich.console import Console

from mambavox.evaluation.compare.cell import Cell, CellStore
from mambavox.evaluation.compare.grid import Grid
from mambavox.evaluation.compare.plan import Plan, make_plan
from mambavox.evaluation.compare.plots import write_plots
from mambavox.evaluation.compare.runner import run_cells, waiting_cells, write_jobs
from mambavox.evaluation.compare.summary import Summary, choose_rate, summarise
from mambavox.evaluation.compare.tables import csv_text, latex, markdown
from mambavox.files import to_json, write_atomically
from mambavox.plotting import can_draw


def compare(grid: Grid, output: str | Path, *, workers: int = 1, console: Console | None = None) -> Summary:
    """Run every cell of a grid that has no result yet, and write the report.

    Each learning rate is tried with the first seed and fold, the best one on the valid split is taken for all; then
    every seed is run on every fold. Results are kept in ``cells/``, one file each, and never computed twice, whatever
    killed the process. The report is ``report.md``, ``results.csv``, ``results.json``, ``table.tex`` and pictures.

    Args:
        grid: what is compared.
        output: the folder.
        workers: processes side by side.
        console: where progress goes; ``None`` is silent.

    Returns:
        The figures. Runs that failed are among them, with their errors; the others went on.

    Raises:
        ConfigError: the grid does not fit the data or the backbone, or ``workers`` is below 1.
        DataError: a task's data cannot be read or divided.
        AudioError: recordings cannot be used.
    """
    console = console or Console(quiet=True)
    store = CellStore(output)
    plan = make_plan(grid, console)
    run_cells(waiting_cells(search_cells(plan), store, console), store, workers, console)
    run_cells(waiting_cells(final_cells(plan, store), store, console), store, workers, console)
    summary = summarise(plan, store)
    write_report(summary, Path(output))
    return summary


def plan_jobs(grid: Grid, output: str | Path, path: Path, *, console: Console | None = None) -> tuple[str, int]:
    """Write the shell commands of the cells that can be run now.

    The final cells can be named once those that choose the learning rates have been run.

    Args:
        grid: what is compared.
        output: folder of the results, which every node must see.
        path: file of the commands, one a line.
        console: where progress goes; ``None`` is silent.

    Returns:
        The stage that they belong to, ``search`` or ``final``, and how many there are.

    Raises:
        ConfigError: the grid does not fit the data or the backbone.
        DataError: a task's data cannot be read or divided.
        AudioError: recordings cannot be used.
    """
    console = console or Console(quiet=True)
    store = CellStore(output)
    plan = make_plan(grid, console)
    stage, waiting = "search", waiting_cells(search_cells(plan), store, console)
    if not waiting:
        stage, waiting = "final", waiting_cells(final_cells(plan, store), store, console)
    write_jobs(waiting, store, path)
    return stage, len(waiting)


def search_cells(plan: Plan) -> list[Cell]:
    """The cells that choose the learning rates."""
    return [cell for task, variant in plan.pairs() for cell in plan.search_cells(task, variant)]


def final_cells(plan: Plan, store: CellStore) -> list[Cell]:
    """The cells that are reported, of those variants for which a learning rate could be chosen."""
    cells = []
    for task, variant in plan.pairs():
        rate = choose_rate(plan, store, task, variant).best
        if rate is not None:
            cells += plan.final_cells(task, variant, rate)
    return cells


def write_report(summary: Summary, folder: Path) -> None:
    """Write a grid's figures as Markdown, CSV, JSON, LaTeX and pictures.

    Args:
        summary: the figures.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.md", markdown(summary))
    write_atomically(folder / "results.csv", csv_text(summary))
    write_atomically(folder / "results.json", to_json(summary.to_mapping()))
    write_atomically(folder / "table.tex", latex(summary))
    if can_draw():
        write_plots(summary, folder)
