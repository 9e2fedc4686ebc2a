"""``mambavox data``: bring corpora from their own addresses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mambavox.cli.command import Command
from mambavox.cli.console import ERR, OUT

data_app = typer.Typer(
    name="data",
    help="Corpora: get some from their own addresses, checked and with a manifest that `adapt` takes.",
    no_args_is_help=True,
)

_Folder = Annotated[
    Path | None,
    typer.Option(
        help="Folder with a folder for each corpus (default: MAMBAVOX_DATA, or mambavox in the user's cache folder)."
    ),
]


@data_app.command("get", cls=Command)
def get_command(
    names: Annotated[list[str], typer.Argument(help="Corpora; `mambavox data list` names them.")],
    folder: _Folder = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Leave what was downloaded beside what was unpacked.")
    ] = False,
) -> None:
    """Bring corpora, checked, with a manifest each; what is there already is not brought again.

    A download that was stopped goes on where it was when the same command is given again.

    Example: mambavox data get fsdd
    """
    from mambavox.data.fetch import SOURCES, get_corpus

    for name in names:
        with _progress(name) as progress:
            target = get_corpus(name, folder, progress=progress, keep_archives=keep_archives)
        source = SOURCES[name]
        OUT.print(f"{name}: {target} ({source.title}; {source.licence})", markup=False, soft_wrap=True)
        OUT.print(f"try: mambavox adapt --data {target}{source.use}", markup=False, soft_wrap=True)


@data_app.command("list", cls=Command)
def list_command(folder: _Folder = None) -> None:
    """List the corpora that can be had, and which are there.

    Example: mambavox data list
    """
    from mambavox.data.fetch import SOURCES, default_folder
    from mambavox.data.fetch.corpora import MANIFEST

    root = (folder or default_folder()).expanduser()
    width = max(map(len, SOURCES))
    for name, source in SOURCES.items():
        there = "there" if (root / name / MANIFEST).is_file() else f"{source.megabytes:,} MB to get"
        OUT.print(f"{name:<{width}}  {there:<16}  {source.title} ({source.licence})", markup=False)
    OUT.print(f"in {root}; get one: mambavox data get {next(iter(SOURCES))}", markup=False)


@contextmanager
def _progress(corpus: str) -> Iterator[Callable[[str], Callable[[int, int | None], None]]]:
    """A bar for each file on a terminal; elsewhere its name alone."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ERR, disable=not ERR.is_terminal or ERR.quiet) as bars:

        def begin(file: str) -> Callable[[int, int | None], None]:
            if not ERR.is_terminal:
                ERR.print(f"{corpus}: downloading {file} ...", markup=False)
            task = bars.add_task(f"{corpus}: {file}", total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield begin
