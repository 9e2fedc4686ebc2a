"""Flags of a command from the fields of a dataclass, so that each stands in one place."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints


def declare_options(command: Callable[..., None], options: type[Any]) -> None:
    """Give a command one flag for each field of a dataclass in place of its ``**flags``.

    Args:
        command: what typer runs.
        options: whose fields are annotated as typer wants parameters, ``Annotated[type, typer.Option(...)]``.
    """
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        item
        for item in inspect.signature(command).parameters.values()
        if item.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters += [
        inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=spec.default, annotation=hints[spec.name])
        for spec in fields(options)
    ]
    # typer reads both.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": None}
