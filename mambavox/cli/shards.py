"""``mambavox shards``: pack a corpus into tars, and index tars that were packed elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import rich.progress
import typer

from mambavox.cli.command import Command
from mambavox.cli.console import ERR, OUT, print_json
from mambavox.cli.flags import OnError

shards_app = typer.Typer(
    name="shards",
    help="Corpora in tars (WebDataset): pack recordings, and index tars, so that training reads few large files.",
    no_args_is_help=True,
)

_DATA = "Recordings: a manifest, a folder, a corpus, shards:PATTERN.tar or hf:owner/name."
_GIGABYTE = 1_000_000_000


_OnError = Annotated[OnError, typer.Option(help="What to do about recordings that cannot be used.")]
_Workers = Annotated[int | None, typer.Option(min=1, help="Threads that work (default: one a core, at most 8).")]


@shards_app.command("make", cls=Command)
def make_command(
    data: Annotated[str, typer.Argument(help=_DATA)],
    output: Annotated[Path, typer.Option(help="Folder of the tars; what an earlier call left there is continued.")],
    gb: Annotated[float, typer.Option(help="Size of a tar, in 10^9 bytes.")] = 1.0,
    audio: Annotated[
        Literal["flac", "keep"],
        typer.Option(help="How recordings are stored: as flac (16 kHz, mono, 16 bits), or kept as they are."),
    ] = "flac",
    cut_seconds: Annotated[
        float | None,
        typer.Option(help="Cut recordings that are longer than so many seconds into equal pieces."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order in which recordings are packed.")] = 0,
    drop_splits: Annotated[
        str | None, typer.Option(help="Values of the split column whose recordings are left out, by commas.")
    ] = None,
    in_order: Annotated[bool, typer.Option("--in-order", help="Pack recordings in their own order.")] = False,
    on_error: _OnError = "raise",
    num_workers: _Workers = None,
) -> None:
    """Pack recordings into tars with an index beside each; a call that was stopped is continued by the same call.

    Example: mambavox shards make clips --output tars
    """
    from mambavox.data import read_examples, splits
    from mambavox.data.shards.pack import make_shards
    from mambavox.errors import ConfigError
    from mambavox.files import watching_the_disk

    if gb <= 0:
        raise ConfigError(f"gb={gb:g}; expected above 0")
    examples, _ = splits.drop_splits(read_examples(data, label_column=None), drop_splits)
    with watching_the_disk(output, lambda: "Make room; the same call continues"), _bar("pack") as progress:
        packed = make_shards(
            examples,
            output,
            shard_bytes=max(1, round(gb * _GIGABYTE)),
            audio=audio,
            cut_seconds=cut_seconds,
            seed=None if in_order else seed,
            on_error=on_error,
            num_workers=num_workers,
            progress=progress,
        )
    OUT.print(
        f"{packed.recordings} recordings, {packed.hours:.2f} h, in {packed.tars} tars of {output}: "
        f"{packed.gigabytes:.3f} GB, {len(packed.left_out)} left out",
        markup=False,
    )
    for problem in packed.left_out:
        OUT.print(f"  left out: {problem.reason}", markup=False)
    OUT.print(f"train on them: mambavox pretrain --data shards:{output}", markup=False)


@shards_app.command("index", cls=Command)
def index_command(
    shards: Annotated[str, typer.Argument(help="Folder of tars, or a pattern: '/data/train-{000000..000999}.tar'.")],
    on_error: _OnError = "raise",
    num_workers: _Workers = None,
) -> None:
    """Index tars that were packed elsewhere: each is read once, and every recording decoded.

    Example: mambavox shards index tars
    """
    from mambavox.data import SAMPLING_RATE
    from mambavox.data.shards.find import find_tars
    from mambavox.data.shards.index import index_shards
    from mambavox.files import watching_the_disk

    tars = find_tars(shards)
    with (
        watching_the_disk(tars[0].parent, lambda: "Make room; the same call continues"),
        _bar("index") as progress,
    ):
        indices = index_shards(tars, on_error=on_error, num_workers=num_workers, progress=progress)
    hours = float(sum(int(index.samples.sum()) for index in indices)) / SAMPLING_RATE / 3600
    left_out = [problem for index in indices for problem in index.left_out]
    OUT.print(
        f"{sum(len(index.keys) for index in indices)} recordings, {hours:.2f} h, in {len(indices)} tars, "
        f"{len(left_out)} left out",
        markup=False,
    )
    for problem in left_out:
        OUT.print(f"  left out: {problem.reason}", markup=False)


@shards_app.command("speed", cls=Command)
def speed_command(
    data: Annotated[str, typer.Argument(help=_DATA)],
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement, at most.")] = 5.0,
    shuffle_shards: Annotated[int, typer.Option(min=1, help="Number of shards whose recordings are mixed.")] = 8,
    warm: Annotated[bool, typer.Option("--warm", help="Leave in memory what the system holds of the files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast one process reads recordings, files or tars, in the order of a training.

    Example: mambavox shards speed shards:tars
    """
    from dataclasses import asdict

    from mambavox.benchmarks.reading import measure_reading
    from mambavox.data import read_recordings

    found = measure_reading(read_recordings(data), seconds=seconds, shuffle_shards=shuffle_shards, cold=not warm)
    if as_json:
        print_json([asdict(speed) for speed in found])
        return
    for speed in found:
        OUT.print(
            f"{speed.how}: {speed.hours_an_hour:,.0f} h/h ({speed.hours_a_processor_hour:,.0f} an hour of the "
            f"processor), {speed.megabytes_a_second:.0f} MB/s, {speed.recordings} recordings in {speed.seconds:.1f} s",
            markup=False,
        )


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    with rich.progress.Progress(console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
