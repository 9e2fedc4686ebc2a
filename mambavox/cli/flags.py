"""Flags of a command from the fields of configurations, and flags that typer does not know."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
import yaml

from mambavox.errors import ConfigError
from mambavox.runs.config import RunConfig
from mambavox.runs.fields import GROUPS, field_default
from mambavox.runs.learning_rates import METHOD_NAMES

Device = Literal["auto", "cpu", "cuda"]
"""Where a model runs."""
OnError = Literal["raise", "skip"]
"""What is done about recordings that cannot be used."""


def chosen_device(device: str) -> str | None:
    """A device for torch; ``None`` for auto.

    Args:
        device: as ``--device`` names it.

    Raises:
        ConfigError: it is a GPU, and there is none.
    """
    if device != "cuda":
        return None if device == "auto" else device
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda, but torch sees no GPU here; leave it at auto, or install a CUDA build of torch"
        )
    return device


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


def declare_flags(command: Callable[..., None], configs: Sequence[type[RunConfig]]) -> None:
    """Give a command one flag for each field of some configurations in place of its ``**flags``.

    Args:
        command: what typer runs.
        configs: its configurations, by task; a field of some alone says so.
    """
    signature = inspect.signature(command)
    parameters = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    owners: dict[str, list[type[RunConfig]]] = {}
    specs: dict[str, Field[Any]] = {}
    for config in configs:
        for spec in fields(config):
            if spec.name != config.further_keys:
                owners.setdefault(spec.name, []).append(config)
                specs.setdefault(spec.name, spec)
    taken = {item.name for item in parameters}
    for name in sorted(specs, key=lambda name: GROUPS.index(specs[name].metadata["group"])):
        if name not in taken:
            parameters.append(_flag(name, specs[name], owners[name], len(configs)))
    # typer reads both.
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": None}


def _flag(name: str, spec: "Field[Any]", owners: Sequence[type[RunConfig]], tasks: int) -> inspect.Parameter:
    """The parameter of a command for a field."""
    hint = get_type_hints(owners[0])[name]
    kind: Any = next((item for item in get_args(hint) if item is not type(None)), hint)
    text, metavar = _help(name, owners), None
    if get_origin(hint) is Literal:  # of other tasks it may be other words
        words = [word for owner in owners for word in get_args(get_type_hints(owner)[name])]
        kind = Literal[tuple(dict.fromkeys(words))]
    elif name == "method":  # too many names for the narrow column of types
        kind, metavar = Literal[METHOD_NAMES], "<name>"
        text = f"{text} One of {', '.join(METHOD_NAMES)}."
    flag = "--" + name.replace("_", "-")
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=text + _remark(name, owners, tasks),
        metavar=metavar,
        rich_help_panel=spec.metadata["group"],
    )
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(name: str, owners: Sequence[type[RunConfig]]) -> str:
    """What a field is; where tasks differ, for each of them."""
    texts: dict[str, list[str]] = {}
    for config in owners:
        texts.setdefault(config.__dataclass_fields__[name].metadata["help"], []).append(config.task)
    return (
        next(iter(texts)) if len(texts) == 1 else " ".join(f"{', '.join(who)}: {text}" for text, who in texts.items())
    )


def _remark(name: str, owners: Sequence[type[RunConfig]], tasks: int) -> str:
    """The default of a field and, where tasks differ, the tasks that it is of."""
    defaults: dict[str, list[str]] = {}
    for config in owners:
        default = field_default(config.__dataclass_fields__[name])
        defaults.setdefault(default or "none", []).append(config.task)
    words = (
        list(defaults) if len(defaults) == 1 else [f"{task}: {d}" for d, names in defaults.items() for task in names]
    )
    some = f"only for {' and '.join(config.task for config in owners)}; " if len(owners) < tasks else ""
    return f" [dim]({some}default: {', '.join(words)})[/dim]"


def check_owned(task: str, given: Mapping[str, Any], configs: Mapping[str, type[RunConfig]]) -> None:
    """Refuse flags of other tasks.

    Args:
        task: that is run.
        given: flags, as keys.
        configs: the configurations by task.

    Raises:
        ConfigError: a flag is none of the task's.
    """
    own = configs[task].__dataclass_fields__
    for key in given:
        owners = [name for name, config in configs.items() if key in config.__dataclass_fields__]
        if owners and key not in own:
            raise ConfigError(f"--{key.replace('_', '-')} is for --task {' or '.join(owners)}, and this is {task}")
