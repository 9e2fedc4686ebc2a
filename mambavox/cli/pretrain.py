"""``mambavox pretrain``: a Mamba-HuBERT from recordings without labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambavox.cli.console import OUT
from mambavox.cli.flags import declare_flags, parse_options
from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.run_config import RUN_FILE

if TYPE_CHECKING:
    from mambavox.training.pretraining.pretrain import Plan
    from mambavox.training.pretraining.result import PretrainResult


def pretrain_command(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML of these flags, such as a run's run.yaml")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished run in the output folder")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in the output folder")] = False,
    keep_checkpoints: Annotated[bool, typer.Option("--keep-checkpoints", help="leave the checkpoints there")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")] = False,
    hours_an_hour: Annotated[
        float | None,
        typer.Option(help="with --dry-run: hours of speech an hour, as a run prints them; says how long a run takes"),
    ] = None,
    **flags: Any,
) -> None:
    """Pre-train a Mamba-HuBERT on recordings without labels, or distil one from another speech model (--teacher).

    Any other flag is a field of the model's configuration and overrides the preset's, such as --hidden-size 256 or
    --layerdrop 0. Flags override what --config says. On 8 GPUs: torchrun --nproc-per-node 8 -m mambavox pretrain ...
    """
    if hours_an_hour is not None and not (dry_run and hours_an_hour > 0):
        raise typer.BadParameter("--hours-an-hour is a speed above 0, and for --dry-run alone")
    given = {key: value for key, value in flags.items() if value is not None} | parse_options(ctx.args)
    chosen = _configuration(config, given, resume=resume)

    from mambavox.training.pretraining.pretrain import is_first_process, plan, pretrain

    if dry_run:
        _print_plan(plan(chosen), hours_an_hour)
        return
    try:
        result = pretrain(chosen, resume=resume, overwrite=overwrite, keep_checkpoints=keep_checkpoints, console=OUT)
    except KeyboardInterrupt:
        OUT.print(f"interrupted; continue with: mambavox pretrain --output {chosen.output_path} --resume", markup=False)
        raise typer.Exit(130) from None
    if is_first_process():
        _print_result(result, chosen.output_path)


def _configuration(file: Path | None, given: Mapping[str, Any], *, resume: bool) -> PretrainConfig:
    if file is None and resume and "output" in given and (Path(given["output"]) / RUN_FILE).is_file():
        file = Path(given["output"]) / RUN_FILE
    if file is None:
        return PretrainConfig.from_mapping(given, "the command line")
    return PretrainConfig.load(file, given)


def _print_plan(plan: "Plan", hours_an_hour: float | None) -> None:
    OUT.print(f"{plan.parameters['encoder']:,} parameters, {plan.parameters['whole']:,} with the pre-training head")
    OUT.print(
        f"{plan.hours:.2f} h of speech to train on in {plan.clips:,} recordings, of which an epoch hears "
        f"{plan.heard:.1%}; {plan.held_back:.2f} h held back"
        + (f"; {plan.unreadable} unreadable recordings left out" if plan.unreadable else "")
    )
    OUT.print(
        f"{plan.steps:,} updates of at most {plan.seconds_a_step:g} s ({plan.batches_a_step} batches of a device), "
        f"{plan.epochs:.1f} epochs, peak learning rate {plan.learning_rate:g}"
    )
    targets = f"targets of {plan.label_gigabytes:.3f} GB; " if plan.label_gigabytes else ""
    OUT.print(f"{targets}all updates hear {plan.hours_heard:,.1f} h of speech")
    if hours_an_hour is not None:
        hours = plan.hours_heard / hours_an_hour
        OUT.print(f"at {hours_an_hour:g} hours of speech an hour: {hours:,.1f} h ({hours / 24:,.1f} days)")


def _print_result(result: "PretrainResult", output: Path) -> None:
    from mambavox.training.pretraining.distillation import DistillationFigures
    from mambavox.training.pretraining.figures import UnitFigures

    if result.valid:
        figures = DistillationFigures if result.num_clusters is None else UnitFigures
        OUT.print(f"valid: {figures.valid_line(result.valid)}, {result.clips['valid']} recordings", markup=False)
    OUT.print(
        f"{result.parameters['encoder']:,} parameters, {result.steps:,} updates, {result.epochs:.1f} epochs of "
        f"{result.hours['train']:.2f} h, {result.seconds / 3600:.2f} h on {result.device}"
    )
    OUT.print(
        f"saved in {output}; load it with\n"
        "  import mambavox.hubert\n"
        "  from transformers import AutoModel\n"
        f'  AutoModel.from_pretrained("{output}")',
        markup=False,
    )


declare_flags(
    pretrain_command,
    PretrainConfig,
    {"data": "Model and targets", "audio_column": "Data", "steps": "Training", "log_every": "Running"},
)
