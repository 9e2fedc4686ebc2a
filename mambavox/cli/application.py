"""The application: its commands and how their errors are told."""

import difflib
import logging
import re
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mambavox.cli.adapt import adapt_command
from mambavox.cli.bench import bench_app
from mambavox.cli.command import Command, without_type
from mambavox.cli.compare import compare_command
from mambavox.cli.console import ERR, OUT, print_error, print_warning
from mambavox.cli.data import data_app
from mambavox.cli.evaluate import evaluate_command
from mambavox.cli.export import export_command
from mambavox.cli.info import info_command
from mambavox.cli.predict import predict_command
from mambavox.cli.pretrain import pretrain_command
from mambavox.cli.quickstart import quickstart_command
from mambavox.cli.serve import serve_command
from mambavox.cli.shards import shards_app
from mambavox.cli.transcribe import transcribe_command
from mambavox.cli.units import units_app
from mambavox.errors import DataWarning, MambavoxError

_SHOW_WARNING = warnings.showwarning
_WRONG_CHOICE = re.compile(r"'(?P<word>[^']*)' is not one of (?P<known>.*)\.")


class _Group(TyperGroup):
    """Tells a user's mistakes in words, without a traceback."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options."""
        return [without_type(option) for option in super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MambavoxError as error:
            print_error(str(error))
            raise typer.Exit(1) from error
        except OSError as error:
            if error.filename is None:
                raise
            print_error(f"{error.filename}: {error.strerror}")
            raise typer.Exit(1) from error
        except RuntimeError as error:
            if "home directory" not in str(error):  # pathlib's, about ~name
                raise
            print_error("a path begins with ~ and the name of nobody here; write the path of the folder")
            raise typer.Exit(1) from error
        except typer.BadParameter as error:
            error.message = _with_nearest(error.message)
            raise


def _with_nearest(message: str) -> str:
    """A message about a wrong choice, with the choices that look like it."""
    found = _WRONG_CHOICE.search(message)
    if found is None:
        return message
    known = re.findall(r"'([^']*)'", found["known"])
    near = difflib.get_close_matches(found["word"], known, n=2, cutoff=0.5)
    message = message.removeprefix("Value error, ")
    return f"{message} Did you mean {' or '.join(near)}?" if near else message


app = typer.Typer(
    name="mambavox",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_FURTHER = {"allow_extra_args": True, "ignore_unknown_options": True}


def _print_version(wanted: bool) -> None:
    if wanted:
        from mambavox import __version__

        OUT.print(f"mambavox {__version__}", markup=False)
        raise typer.Exit


def _show_warning(message: Any, category: type[Warning], *place: Any, **options: Any) -> None:
    """Print a warning about data on one line; others as Python does."""
    if issubclass(category, DataWarning):
        print_warning(str(message))
    else:
        _SHOW_WARNING(message, category, *place, **options)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress, only results and errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print what the libraries below log, too, for bug reports.")
    ] = False,
) -> None:
    """Mamba state-space models for speech and audio."""
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict each other; leave out one of them")
    ERR.quiet = quiet
    warnings.showwarning = _show_warning
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING)


# Any other flag of `adapt` is an option of its method; one of `compare` is a flag of `adapt`, for every run.
app.command("adapt", cls=Command, context_settings=_FURTHER)(adapt_command)
app.command("transcribe", cls=Command)(transcribe_command)
app.command("serve", cls=Command)(serve_command)
app.command("export", cls=Command)(export_command)
app.command("evaluate", cls=Command)(evaluate_command)
app.command("predict", cls=Command)(predict_command)
app.command("info", cls=Command)(info_command)
app.command("compare", cls=Command, context_settings=_FURTHER)(compare_command)
# Any other flag of `pretrain` is a field of the model's configuration.
app.command("pretrain", cls=Command, context_settings=_FURTHER)(pretrain_command)
app.command("quickstart", cls=Command)(quickstart_command)
app.add_typer(bench_app, name="bench")
app.add_typer(units_app, name="units")
app.add_typer(data_app, name="data")
app.add_typer(shards_app, name="shards")
