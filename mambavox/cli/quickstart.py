"""``mambavox quickstart``: methods side by side on the embedded task, in two minutes."""

from pathlib import Path
from typing import Annotated

import typer

from mambavox.cli.console import OUT


def quickstart_command(
    output: Annotated[Path, typer.Option(help="folder to write")] = Path("runs/quickstart"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier quickstart there")] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="compare every method, which takes six minutes, instead of four, which take two"),
    ] = False,
    clips_per_word: Annotated[int, typer.Option(min=4, help="recordings of each of the 12 commands")] = 60,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the training split")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="of the recordings and the training")] = 0,
) -> None:
    """Adapt the embedded backbone to synthesised spoken commands with four methods, and compare them."""
    from mambavox.adapters import METHODS
    from mambavox.evaluation.quickstart import QUICK_METHODS, RESULTS_FILE, SHOWN_METHOD, loading_lines, quickstart

    quickstart(
        output,
        methods=tuple(METHODS) if every else QUICK_METHODS,
        clips_per_word=clips_per_word,
        epochs=epochs,
        seed=seed,
        overwrite=overwrite,
        console=OUT,
    )
    size = (output / "adapter_model.safetensors").stat().st_size / 1024
    OUT.print(
        f"the {SHOWN_METHOD} adapter ({size:.0f} kB), report.png and {RESULTS_FILE} are in {output}", markup=False
    )
    OUT.print("load it and classify a recording:\n")
    OUT.print(loading_lines(output), markup=False)
