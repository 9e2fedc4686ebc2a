"""``mambavox evaluate``: figures of a finished run on data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mambavox.cli.console import ERR, OUT, print_json


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="run folder that `mambavox adapt` wrote")],
    data: Annotated[
        str | None, typer.Option(help="recordings with labels (default: the run's own, divided as there)")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="train, valid, test or all (default: test; all of other data)")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="column of the class (default: the run's)")] = None,
    audio_column: Annotated[str | None, typer.Option(help="column of the recordings (default: the run's)")] = None,
    on_error: Annotated[str, typer.Option(help="about unusable recordings: raise an error, or skip them")] = "raise",
    batch_size: Annotated[int | None, typer.Option(min=1, help="recordings at a time (default: the run's)")] = None,
    worst: Annotated[int, typer.Option(min=0, help="how many of the worst classes to print")] = 5,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: a GPU if there is one)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, with the confusion counts")] = False,
) -> None:
    """Score a finished run: accuracy with its 95 % interval, macro F1, confusions, the worst classes."""
    parts, ways = ("train", "valid", "test", "all"), ("raise", "skip")
    if part is not None and part not in parts:
        raise typer.BadParameter(f"--part {part}; expected {', '.join(parts)}")
    if on_error not in ways:
        raise typer.BadParameter(f"--on-error {on_error}; expected {' or '.join(ways)}")

    from mambavox.evaluation.evaluate import evaluate_run
    from mambavox.training.result import OPTIMISTIC

    choices: Any = {"part": part, "on_error": on_error}
    evaluation = evaluate_run(
        run,
        data=data,
        label_column=label_column,
        audio_column=audio_column,
        batch_size=batch_size,
        device=device,
        console=ERR,
        **choices,
    )
    if as_json:
        print_json(evaluation.to_mapping())
        return
    scores = evaluation.scores
    warning = f" ({OPTIMISTIC})" if evaluation.selects_on_test else ""
    OUT.print(f"{evaluation.data}, {evaluation.part}{warning}: {scores.clips} clips", markup=False)
    OUT.print(f"accuracy {scores}, macro F1 {scores.macro_f1:.3f}", markup=False)
    for problem in evaluation.skipped:
        OUT.print(f"left out: {problem.reason}", markup=False)
    if worst:
        OUT.print("worst classes:")
    for row in evaluation.classes()[:worst]:
        mistaken = f", most often taken for {row.mistaken_for}" if row.mistaken_for else ""
        OUT.print(f"  {row.label}: {row.correct} of {row.clips} ({row.recall:.1%}){mistaken}", markup=False)
