"""The application: its commands and how their errors are told."""

import difflib
import logging
import re
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mambavox.cli.adapt import adapt_command
from mambavox.cli.bench import bench_app
from mambavox.cli.compare import compare_command
from mambavox.cli.console import ERR, OUT, print_error
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
from mambavox.errors import MambavoxError

_WRONG_CHOICE = re.compile(r"'(?P<word>[^']*)' is not one of (?P<known>.*)\.")


class _Group(TyperGroup):
    """Tells a user's mistakes in words, without a traceback."""

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
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING)


# Any other flag of `adapt` is an option of its method; one of `compare` is a flag of `adapt`, for every run.
app.command("adapt", context_settings=_FURTHER)(adapt_command)
app.command("transcribe")(transcribe_command)
app.command("serve")(serve_command)
app.command("export")(export_command)
app.command("evaluate")(evaluate_command)
app.command("predict")(predict_command)
app.command("info")(info_command)
app.command("compare", context_settings=_FURTHER)(compare_command)
# Any other flag of `pretrain` is a field of the model's configuration.
app.command("pretrain", context_settings=_FURTHER)(pretrain_command)
app.command("quickstart")(quickstart_command)
app.add_typer(bench_app, name="bench")
app.add_typer(units_app, name="units")
app.add_typer(data_app, name="data")
app.add_typer(shards_app, name="shards")
