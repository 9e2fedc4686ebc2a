"""The application: its commands and how their errors are told."""

from typing import Any

import typer
from typer.core import TyperGroup

from mambavox.cli.adapt import adapt_command
from mambavox.cli.adapt_asr import adapt_asr_command, asks_for_asr
from mambavox.cli.bench import bench_app
from mambavox.cli.compare import compare_command
from mambavox.cli.console import print_error
from mambavox.cli.evaluate import evaluate_command
from mambavox.cli.export import export_command
from mambavox.cli.finetune import finetune_command
from mambavox.cli.info import info_command
from mambavox.cli.predict import predict_command
from mambavox.cli.pretrain import pretrain_command
from mambavox.cli.quickstart import quickstart_command
from mambavox.cli.serve import serve_command
from mambavox.cli.shards import shards_app
from mambavox.cli.transcribe import transcribe_command
from mambavox.cli.units import units_app
from mambavox.errors import MambavoxError

_ADAPT_ASR = "adapt --task asr"


class _Group(TyperGroup):
    """Tells a user's mistakes in words, without a traceback; one `adapt` for every task."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[:1] == ["adapt"] and asks_for_asr(args):
            return _ADAPT_ASR, self.get_command(ctx, _ADAPT_ASR), args[1:]
        return super().resolve_command(ctx, args)

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


app = typer.Typer(
    name="mambavox",
    help="Mamba state-space models for speech and audio.",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
# Any other flag of `adapt` is an option of its method; one of `compare` is a flag of `adapt`, for every run.
app.command("adapt", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(adapt_command)
app.command(_ADAPT_ASR, hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    adapt_asr_command
)
app.command("finetune", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(finetune_command)
app.command("transcribe")(transcribe_command)
app.command("serve")(serve_command)
app.command("export")(export_command)
app.command("evaluate")(evaluate_command)
app.command("predict")(predict_command)
app.command("info")(info_command)
app.command("compare", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(compare_command)
# Any other flag of `pretrain` is a field of the model's configuration.
app.command("pretrain", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(pretrain_command)
app.command("quickstart")(quickstart_command)
app.add_typer(bench_app, name="bench")
app.add_typer(units_app, name="units")
app.add_typer(shards_app, name="shards")
