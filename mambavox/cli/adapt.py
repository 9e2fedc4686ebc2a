"""``mambavox adapt``: one run, from recordings to a run folder."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
import yaml

from mambavox.cli.console import OUT
from mambavox.training.config import RUN_FILE, AdaptConfig, unknown_key

if TYPE_CHECKING:
    from mambavox.training.result import AdaptResult

_FIRST_OF_TRAINING = "epochs"


def adapt_command(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML of these flags, such as a run's run.yaml")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished run in the output folder")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in the output folder")] = False,
    keep_checkpoints: Annotated[bool, typer.Option("--keep-checkpoints", help="leave the checkpoints there")] = False,
    **flags: Any,
) -> None:
    """Adapt a pre-trained audio model to recordings with labels.

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


def parse_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Keys and values of flags that typer does not know.

    Args:
        arguments: such as ``["--bottleneck-dim", "12", "--no-train-norms"]``.

    Raises:
        typer.BadParameter: an argument is no flag.
    """
    options: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise typer.BadParameter(f"unexpected argument {word!r}; expected flags such as --epochs 20")
        key, _, value = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if value:
            options[key] = _value(value)
        elif words and not words[0].startswith("--"):
            options[key] = _value(words.pop(0))
        elif key.startswith("no_"):
            options[key.removeprefix("no_")] = False
        else:
            options[key] = True
    return options


def _value(text: str) -> Any:
    # Only what is unmistakable: to YAML, "no" and "off" would be false, too.
    return yaml.safe_load(text) if text.startswith("[") or text.lower() in ("true", "false", "null") else text


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


def _declare_flags(command: Callable[..., None]) -> None:
    """Give a command one flag for each field of ``AdaptConfig`` in place of its ``**flags``."""
    hints = get_type_hints(AdaptConfig)
    names = [spec.name for spec in fields(AdaptConfig)]
    signature = inspect.signature(command)
    parameters = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    for spec in fields(AdaptConfig):
        if spec.name == "method_options":
            continue
        flag = "--" + spec.name.replace("_", "-")
        kind = next((item for item in get_args(hints[spec.name]) if item is not type(None)), hints[spec.name])
        if get_origin(hints[spec.name]) is Literal:
            kind = str  # AdaptConfig checks the choices, whatever the source of the value
        default = spec.metadata["unset"] if spec.default is None else str(spec.default).lower()
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            help=spec.metadata["help"] + (f" (default: {default})" if default else ""),
            rich_help_panel="Data" if names.index(spec.name) < names.index(_FIRST_OF_TRAINING) else "Training",
        )
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    # typer reads both.
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": None}


_declare_flags(adapt_command)
