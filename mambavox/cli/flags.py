"""Flags of a command from the fields of a configuration, and flags that typer does not know."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
import yaml

from mambavox.training.run_config import RunConfig


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


def declare_flags(command: Callable[..., None], config: type[RunConfig], panels: dict[str, str]) -> None:
    """Give a command one flag for each field of a configuration in place of its ``**flags``.

    Args:
        command: what typer runs.
        config: its configuration.
        panels: first field of each panel of ``--help`` -> title of the panel.
    """
    hints = get_type_hints(config)
    signature = inspect.signature(command)
    parameters = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    panel = ""
    for spec in fields(config):
        panel = panels.get(spec.name, panel)
        if spec.name == config.further_keys:
            continue
        flag = "--" + spec.name.replace("_", "-")
        kind = next((item for item in get_args(hints[spec.name]) if item is not type(None)), hints[spec.name])
        if get_origin(hints[spec.name]) is Literal:
            kind = str  # the configuration checks the choices, whatever the source of the value
        default = spec.metadata["unset"] if spec.default is None else str(spec.default).lower()
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            help=spec.metadata["help"] + (f" (default: {default})" if default else ""),
            rich_help_panel=panel,
        )
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    # typer reads both.
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": None}
