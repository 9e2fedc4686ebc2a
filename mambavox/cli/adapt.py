"""``mambavox adapt``: one run, from recordings to a run folder."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambavox.cli.console import OUT
from mambavox.cli.flags import declare_flags, parse_options
from mambavox.training.config import AdaptConfig
from mambavox.training.run_config import RUN_FILE, unknown_key

if TYPE_CHECKING:
    from mambavox.training.result import AdaptResult


def adapt_command(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML of these flags, such as a run's run.yaml")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished run in the output folder")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in the output folder")] = False,
    keep_checkpoints: Annotated[bool, typer.Option("--keep-checkpoints", help="leave the checkpoints there")] = False,
    **flags: Any,
) -> None:
    """Adapt a pre-trained audio model to recordings with labels, or a Whisper to a language: `--task asr --help`.

    Any other flag is an option of the method, such as --bottleneck-dim 12 or --no-train-norms; `mambavox info --method
    NAME` lists them. Flags override what --config says.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    options = parse_options(ctx.args)
    chosen = _configuration(config, given, options, resume=resume)

    from mambavox.training.adapt import adapt

    try:
        result = adapt(chosen, resume=resume, overwrite=overwrite, keep_checkpoints=keep_checkpoints, console=OUT)
    except KeyboardInterrupt:
        OUT.print(f"interrupted; continue with: mambavox adapt --output {chosen.output_path} --resume", markup=False)
        raise typer.Exit(130) from None
    _print_result(result, chosen.output_path)


def _configuration(
    file: Path | None, given: Mapping[str, Any], options: Mapping[str, Any], *, resume: bool
) -> AdaptConfig:
    if file is None and resume and "output" in given and (Path(given["output"]) / RUN_FILE).is_file():
        file = Path(given["output"]) / RUN_FILE
    base = AdaptConfig() if file is None else AdaptConfig.load(file, given)
    method = given.get("method", base.method)
    if options:
        from mambavox.adapters import METHODS

        known = METHODS[method].options() if method in METHODS else []
        for key in options:
            if key not in known:
                keys = [spec.name for spec in fields(AdaptConfig)]
                raise typer.BadParameter(f"{unknown_key(key, [*keys, *known])} (method: {method})")
    if file is None:
        return AdaptConfig.from_mapping({**given, **options}, "the command line")
    return AdaptConfig.load(file, {**given, **options})


def _print_result(result: "AdaptResult", output: Path) -> None:
    for part, scores in result.scores.items():
        name = result.describe_part(part)
        OUT.print(f"{name}: accuracy {scores} of {scores.clips} clips, macro F1 {scores.macro_f1:.3f}", markup=False)
    if result.skipped:
        OUT.print(f"{len(result.skipped)} recordings left out; metrics.json says which and why")
    if result.cut:
        OUT.print(f"{result.cut} recordings cut to {result.max_seconds:.2f} s")
    for note in result.notes:
        OUT.print(note, markup=False)
    parameters = result.parameters
    OUT.print(
        f"{parameters['total']:,} trainable parameters (head {parameters['head']:,}; the rest is "
        f"{parameters['share_of_backbone']:.2%} of the backbone), {result.seconds:.0f} s on {result.device}"
    )
    OUT.print(f"saved in {output}; try: mambavox predict {output} FILE", markup=False)


declare_flags(adapt_command, AdaptConfig, {"data": "Data", "epochs": "Training"})
