"""What the commands share that do a run: options, interruption, and what is printed of a result."""

from pathlib import Path
from typing import Annotated

import typer

from mambavox.cli.console import OUT
from mambavox.runs.config import RunConfig
from mambavox.runs.folder import COMMANDS, USES
from mambavox.runs.result import RunResult, describe_scores

Config = Annotated[
    Path | None, typer.Option(help="YAML file of these flags, such as a run's run.yaml; flags given here override it.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the unfinished run in the output folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")]
KeepCheckpoints = Annotated[bool, typer.Option("--keep-checkpoints", help="Leave the checkpoints in the run folder.")]


def do_run(config: RunConfig, *, resume: bool, overwrite: bool, keep_checkpoints: bool) -> None:
    """Do a run and print what it gave.

    Args:
        config: of the run.
        resume: continue the unfinished run.
        overwrite: replace the run.
        keep_checkpoints: leave the checkpoints.
    """
    from mambavox.training.run import is_first_process, run

    try:
        result = run(config, resume=resume, overwrite=overwrite, keep_checkpoints=keep_checkpoints, console=OUT)
    except KeyboardInterrupt:
        OUT.print(
            f"interrupted; continue with: {COMMANDS[config.task]} --output {config.output_path} --resume", markup=False
        )
        raise typer.Exit(130) from None
    if is_first_process():
        print_result(result, config.output_path)


def print_result(result: RunResult, output: Path) -> None:
    """Print the scores of a run, what was left out, and how to use it."""
    for split, figures in result.scores.items():
        if result.method is None and split == "train":
            continue
        count = result.recordings.get(split, 0)
        OUT.print(f"{result.describe_split(split)}: {describe_scores(figures)}, {count} recordings", markup=False)
    if result.left_out:
        OUT.print(f"left out: {len(result.left_out)} recordings; metrics.json says which and why")
    details = result.details
    for split, count in details.get("unknown_tokens", {}).items():
        if count:
            OUT.print(f"{split}: {count} tokens occur in no training transcript and cannot be written")
    if details.get("new_token"):
        OUT.print(f"{details['new_token']} is a new token of the model", markup=False)
    for note in result.notes:
        OUT.print(note, markup=False)
    OUT.print(f"{_size(result)}, {_time(result.seconds)} on {result.device}")
    OUT.print(f"saved in {output}; try: {USES[result.task].format(run=output)}", markup=False)


def _size(result: RunResult) -> str:
    parameters = result.parameters
    if result.method is None:
        return (
            f"{parameters['encoder']:,} parameters, {result.details['steps']:,} updates, {result.best_epoch:.1f} "
            f"passes over {result.hours['train']:.2f} h"
        )
    return (
        f"{parameters['total']:,} trained parameters (head {parameters['head']:,}; the rest is "
        f"{parameters['share_of_backbone']:.2%} of the backbone)"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 3600 else f"{seconds / 3600:.2f} h"
