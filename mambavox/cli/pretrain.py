"""``mambavox pretrain``: a Mamba-HuBERT from recordings without labels."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambavox.cli.console import OUT
from mambavox.cli.flags import declare_flags, parse_options
from mambavox.cli.running import Config, KeepCheckpoints, Overwrite, Resume, do_run
from mambavox.training.configs import from_flags
from mambavox.training.pretraining.config import PretrainConfig

if TYPE_CHECKING:
    from mambavox.training.pretraining.plan import Plan


def pretrain_command(
    ctx: typer.Context,
    config: Config = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    keep_checkpoints: KeepCheckpoints = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    hours_an_hour: Annotated[
        float | None,
        typer.Option(
            help="With --dry-run: hours of speech an hour, as a run prints them, to say how long a run takes."
        ),
    ] = None,
    **flags: Any,
) -> None:
    """Pre-train a Mamba-HuBERT on recordings without labels, or distil one from another speech model (--teacher).

    Any other flag is a field of the model's configuration and overrides the preset's, such as --hidden-size 256 or
    --layerdrop 0. On 8 GPUs: torchrun --nproc-per-node 8 -m mambavox pretrain ...

    Example: mambavox pretrain --preset mamba-nano --data recordings/ --output runs/it1
    """
    if hours_an_hour is not None and not (dry_run and hours_an_hour > 0):
        raise typer.BadParameter("--hours-an-hour is a speed above 0, and for --dry-run alone")
    given = {key: value for key, value in flags.items() if value is not None} | parse_options(ctx.args)
    chosen = from_flags(None, config, given, resume=resume, tasks=["pretrain"])
    if dry_run:
        from mambavox.training.pretraining.plan import plan

        assert isinstance(chosen, PretrainConfig)
        _print_plan(plan(chosen), hours_an_hour)
        return
    do_run(chosen, resume=resume, overwrite=overwrite, keep_checkpoints=keep_checkpoints)


def _print_plan(plan: "Plan", hours_an_hour: float | None) -> None:
    OUT.print(f"{plan.parameters['encoder']:,} parameters, {plan.parameters['whole']:,} with the pre-training head")
    OUT.print(
        f"{plan.hours:.2f} h of speech to train on in {plan.recordings:,} recordings, of which an epoch hears "
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


declare_flags(pretrain_command, [PretrainConfig])
