"""``mambavox compare``: methods on tasks, with seeds and folds, into tables and plots."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mambavox.cli.console import ERR, OUT, print_json, tell_of_no_plots
from mambavox.cli.flags import parse_options
from mambavox.cli.options import declare_options

if TYPE_CHECKING:
    from mambavox.evaluation.compare.grid import Grid


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What the command takes, as typer wants it."""

    preset: Annotated[
        Literal["table1", "table2", "scaling", "ablation", "surface", "few-shot", "whisper-base", "latency"] | None,
        typer.Option(help="A ready comparison, mostly the MambAdapter paper's; without it, give --methods."),
    ] = None
    task: Annotated[
        list[str] | None,
        typer.Option(
            help='Name, kind, data and settings, such as "esc10=/data/esc10 epochs=12" or "hsb=whisper:hsb.jsonl"; '
            "the kinds are classify, which is meant where none is named, ctc and whisper. May be repeated."
        ),
    ] = None
    methods: Annotated[
        str | None,
        typer.Option(
            help='Methods and their options, such as "lora r=4, mambadapter"; a bare name takes the rows that the '
            "preset has of that method."
        ),
    ] = None
    budgets: Annotated[
        str | None,
        typer.Option(help="Numbers of trained parameters, such as 20000,60000, for methods whose size is not given."),
    ] = None
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds are run (default: 3; 5 with --faithful).")
    ] = None
    learning_rates: Annotated[
        str | None,
        typer.Option(
            help="Rates that are tried for every method, such as 1e-3,1e-2, or multiples of each method's own, such as "
            "x0.3,x1,x3 (default: x0.1 to x10)."
        ),
    ] = None
    backbone: Annotated[
        str | None, typer.Option(help="Pre-trained model (default: the paper's AST; without a preset nano-ast).")
    ] = None
    faithful: Annotated[
        bool, typer.Option("--faithful", help="Keep the paper's settings; the default is a corrected protocol.")
    ] = False
    output: Annotated[
        Path, typer.Option(help="Folder of the results and the report; finished runs in it are not run again.")
    ] = Path("runs/compare")
    workers: Annotated[
        int, typer.Option(min=1, help="How many runs go side by side: one GPU each, or one CPU thread each.")
    ] = 1
    jobs_file: Annotated[
        Path | None, typer.Option(help="Write one shell command a run to this file for a cluster, and run nothing.")
    ] = None
    cell: Annotated[str | None, typer.Option(help="Run one run of a jobs file.", hidden=True)] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their trained parameters, and run nothing.")
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False


def compare_command(ctx: typer.Context, **flags: Any) -> None:
    """Compare methods: every one on every task, with several seeds, on all folds, each with its best learning rate.

    Any other flag of `mambavox adapt`, such as --epochs 10 or --device cpu, holds for every run. A killed comparison
    goes on where it was when the same command is given again.

    Example: mambavox compare --methods "lora, mambadapter" --task esc10=/data/esc10 --task fsdd=/data/fsdd
    """
    options = CompareOptions(**flags)
    if options.cell is not None:
        _run_cell(options.cell, options.output)
    elif options.preset == "latency":
        _compare_latency(options, parse_options(ctx.args))
    else:
        grid = _grid(options, parse_options(ctx.args))
        if options.dry_run:
            _list(grid, options.output, options.as_json)
        elif options.jobs_file is not None:
            _write_jobs(grid, options.output, options.jobs_file)
        else:
            _compare(grid, options.output, options.workers, options.as_json)


declare_options(compare_command, CompareOptions)


def _compare_latency(options: CompareOptions, further: dict[str, Any]) -> None:
    """The preset ``latency``, which measures what methods cost and trains nothing."""
    others = ("task", "seeds", "learning_rates", "faithful", "jobs_file", "dry_run")
    if any(getattr(options, name) for name in others) or options.workers > 1:
        raise typer.BadParameter("--preset latency takes --backbone, --methods, --budgets, --output and its own flags")
    from mambavox.cli.latency import print_latency

    print_latency(options.backbone, options.methods, options.budgets, further, options.output, options.as_json)


def _grid(options: CompareOptions, settings: dict[str, Any]) -> "Grid":
    """What is compared, by the options and the settings of every run."""
    from mambavox.evaluation.compare.grid import Grid, parse_task, parse_variant
    from mambavox.evaluation.compare.presets import PRESETS, choose_variants

    chosen = [parse_variant(words) for words in (options.methods or "").split(",") if words.strip()]
    tasks = tuple(parse_task(words) for words in options.task or [])
    if options.preset is not None:
        grid = PRESETS[options.preset](tasks)
        grid = choose_variants(grid, chosen) if chosen else grid
    elif chosen:
        grid = Grid("comparison", tuple(chosen), tasks)
    else:
        raise typer.BadParameter(f"nothing to compare; give --preset ({', '.join(PRESETS)}, latency) or --methods")
    grid = replace(grid, settings={**grid.settings, **settings}, backbone=options.backbone or grid.backbone)
    grid = _with_rates(grid, options.learning_rates)
    if options.faithful:
        from mambavox.evaluation.compare.faithful import SEEDS, make_faithful

        grid = replace(make_faithful(grid), seeds=SEEDS)
    if options.seeds is not None:
        grid = replace(grid, seeds=_seeds(options.seeds, grid.seeds if options.faithful else ()))
    if options.budgets is not None:
        from mambavox.evaluation.compare.listing import fit_variants

        grid = fit_variants(grid, _whole_numbers(options.budgets))
    return grid


def _with_rates(grid: "Grid", text: str | None) -> "Grid":
    if text is None:
        return grid
    words = [word.strip() for word in text.split(",") if word.strip()]
    grid = replace(grid, variants=tuple(replace(variant, learning_rate=None) for variant in grid.variants))
    try:
        if all(word.startswith("x") for word in words):
            return replace(grid, learning_rates=(), rate_factors=tuple(float(word[1:]) for word in words))
        return replace(grid, learning_rates=tuple(float(word) for word in words))
    except ValueError:
        raise typer.BadParameter(f"--learning-rates {text}; expected such as 1e-3,1e-2 or x0.3,x1,x3") from None


def _seeds(number: int, named: Sequence[int]) -> tuple[int, ...]:
    if named and number > len(named):
        raise typer.BadParameter(f"--seeds {number}; the paper has {len(named)}: {', '.join(map(str, named))}")
    return tuple(named[:number] or range(number))


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(word.replace("_", "")) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--budgets {text}; expected whole numbers such as 20000,60000") from None


def _list(grid: "Grid", output: Path, as_json: bool) -> None:
    from mambavox.evaluation.compare.cell import CellStore
    from mambavox.evaluation.compare.listing import list_cells, list_variants
    from mambavox.evaluation.compare.plan import make_plan

    rows = list_cells(make_plan(grid, ERR), CellStore(output)) if grid.tasks else list_variants(grid)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        line = f"{row['variant']}: {row['parameters']:,} parameters"
        if grid.tasks:
            rate = "its best rate" if row["learning_rate"] is None else f"rate {row['learning_rate']:g}"
            fold = "" if row["fold"] is None else f", fold {row['fold']}"
            done = "done" if row["done"] else "to do"
            line = f"{row['stage']}: {row['task']}{fold}, seed {row['seed']}, {rate}, {line}, {done}"
        OUT.print(line, markup=False)


def _compare(grid: "Grid", output: Path, workers: int, as_json: bool) -> None:
    from mambavox.evaluation.compare.compare import compare
    from mambavox.evaluation.compare.tables import markdown

    try:
        summary = compare(grid, output, workers=workers, console=ERR)
    except KeyboardInterrupt:
        ERR.print("interrupted; the same command goes on where this one was")
        raise typer.Exit(130) from None
    if as_json:
        print_json(summary.to_mapping())
    else:
        OUT.print(markdown(summary), markup=False)
        OUT.print(f"report.md, results.csv, results.json, table.tex and plots are in {output}", markup=False)
        tell_of_no_plots()
    if summary.failures:
        ERR.print(f"{len(summary.failures)} runs failed; the report says why", style="red")
        raise typer.Exit(1)


def _write_jobs(grid: "Grid", output: Path, path: Path) -> None:
    from mambavox.evaluation.compare.compare import plan_jobs

    stage, count = plan_jobs(grid, output, path, console=ERR)
    after = {
        "search": "run them, then give this command again: it writes those that are reported, at the chosen rates",
        "final": "run them, then give this command without --jobs-file: it writes the report",
    }
    OUT.print(f"{count} commands ({stage}) are in {path}; {after[stage]}", markup=False)


def _run_cell(key: str, output: Path) -> None:
    from mambavox.evaluation.compare.runner import run_planned

    error = run_planned(key, output, ERR)
    if error is not None:
        ERR.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1)
