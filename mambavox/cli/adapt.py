"""``mambavox adapt``: one run of any task that adapts a pre-trained backbone."""

from typing import Annotated, Any, Literal

import typer

from mambavox.cli.flags import check_owned, declare_flags, parse_options
from mambavox.cli.running import Config, KeepCheckpoints, Overwrite, Resume, do_run
from mambavox.runs.config import AdaptConfig
from mambavox.runs.fields import unknown_key
from mambavox.training.configs import ADAPT_TASKS, CONFIGS, from_flags

_CONFIGS = {task: CONFIGS[task] for task in ADAPT_TASKS}


def adapt_command(
    ctx: typer.Context,
    task: Annotated[
        Literal["classify", "ctc", "whisper"] | None,
        typer.Option(
            help="What is learned: classify (labels of recordings), ctc (transcripts, with a CTC head on Mamba-HuBERT, "
            "wav2vec2, HuBERT or WavLM) or whisper (transcripts, with a Whisper) [dim](default: classify)[/dim]",
            rich_help_panel="Model",
        ),
    ] = None,
    config: Config = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    keep_checkpoints: KeepCheckpoints = False,
    **flags: Any,
) -> None:
    """Adapt a pre-trained backbone to your recordings and write a run folder.

    Any other flag is an option of the method, such as --bottleneck-dim 12 or --no-train-norms; `mambavox info --method
    NAME` lists them.

    Example: mambavox adapt --data recordings/ --method mambadapter --output runs/mine
    """
    given = {key: value for key, value in flags.items() if value is not None}
    options = parse_options(ctx.args)
    chosen = from_flags(task, config, given, resume=resume, tasks=ADAPT_TASKS)
    check_owned(chosen.task, given, _CONFIGS)
    if options:
        assert isinstance(chosen, AdaptConfig)
        known, definer = chosen.known_further_keys()
        for key in options:
            if key not in known:
                names = [*_CONFIGS[chosen.task].__dataclass_fields__, *known]
                raise typer.BadParameter(f"{unknown_key(key, names)} ({definer})")
        chosen = from_flags(task, config, {**given, **options}, resume=resume, tasks=ADAPT_TASKS)
    do_run(chosen, resume=resume, overwrite=overwrite, keep_checkpoints=keep_checkpoints)


declare_flags(adapt_command, list(_CONFIGS.values()))
