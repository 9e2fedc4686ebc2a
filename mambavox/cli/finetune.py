"""``mambavox finetune``: a speech recogniser, from recordings with transcripts to a run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambavox.cli.console import OUT
from mambavox.cli.flags import declare_flags, parse_options
from mambavox.training.recognition.config import RecognitionConfig
from mambavox.training.run_config import RUN_FILE, read_yaml

if TYPE_CHECKING:
    from mambavox.training.recognition.finetune import RecognitionResult


def finetune_command(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML of these flags, such as a run's run.yaml")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished run in the output folder")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in the output folder")] = False,
    keep_checkpoints: Annotated[bool, typer.Option("--keep-checkpoints", help="leave the checkpoints there")] = False,
    **flags: Any,
) -> None:
    """Train a model with CTC to transcribe speech.

    Any other flag is an option of the method, such as --bottleneck-dim 12; `mambavox info --method NAME` lists them.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    options = parse_options(ctx.args)
    if config is None and resume and "output" in given and (Path(given["output"]) / RUN_FILE).is_file():
        config = Path(given["output"]) / RUN_FILE
    chosen = _configuration(config, {**given, **options})

    from mambavox.training.recognition.finetune import finetune

    try:
        result = finetune(chosen, resume=resume, overwrite=overwrite, keep_checkpoints=keep_checkpoints, console=OUT)
    except KeyboardInterrupt:
        OUT.print(f"interrupted; continue with: mambavox finetune --output {chosen.output_path} --resume", markup=False)
        raise typer.Exit(130) from None
    _print_result(result, chosen.output_path)


def _configuration(file: Path | None, given: Mapping[str, Any]) -> RecognitionConfig:
    content = {} if file is None else read_yaml(file)
    source = "the command line" if file is None else str(file)
    return RecognitionConfig.from_mapping({**content, **given}, source)


def _print_result(result: "RecognitionResult", output: Path) -> None:
    figures = result.figures
    for part, scores in figures["scores"].items():
        rates = "  ".join(
            f"{kind.upper()} {100 * scores[kind]['rate']:.2f} % "
            f"[{100 * scores[kind]['low']:.2f}, {100 * scores[kind]['high']:.2f}]"
            for kind in ("wer", "cer")
        )
        OUT.print(f"{part}: {rates}, {scores['utterances']} recordings", markup=False)
    if figures["left_out"]:
        OUT.print(f"{len(figures['left_out'])} recordings left out; metrics.json says which and why")
    for part, count in figures["unknown_characters"].items():
        if count:
            OUT.print(f"{part}: {count} tokens that no training transcript has, and that cannot be written")
    for note in figures["notes"]:
        OUT.print(note, markup=False)
    OUT.print(
        f"{figures['parameters']['total']:,} trained parameters, {figures['seconds']:.0f} s on {figures['device']}"
    )
    OUT.print(f"saved in {output}; try: mambavox transcribe FILE --model {output}", markup=False)


declare_flags(
    finetune_command, RecognitionConfig, {"data": "Model and data", "text_column": "Data", "epochs": "Training"}
)
