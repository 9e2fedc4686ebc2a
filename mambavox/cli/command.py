"""One command of the command line."""

from typing import Any

from typer.core import TyperCommand, TyperOption


class Command(TyperCommand):
    """A command whose help shows no type beside a switch, which takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options and arguments, ``--help`` included."""
        return [without_type(option) for option in super().get_params(ctx)]


def without_type(option: Any) -> Any:
    """A parameter of a command; a switch has no type from then on."""
    if isinstance(option, TyperOption) and option.is_flag and option.metavar is None:
        option.metavar = ""
    return option
