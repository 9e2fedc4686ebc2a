"""``mambavox adapt --task asr``: one run, from transcribed recordings to a run folder."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambavox.cli.console import OUT
from mambavox.cli.flags import declare_flags, parse_options
from mambavox.errors import ConfigError
from mambavox.training.run_config import RUN_FILE, read_yaml
from mambavox.training.seq2seq.config import Seq2SeqConfig

if TYPE_CHECKING:
    from mambavox.training.seq2seq.result import Seq2SeqResult

TASK = "asr"


def adapt_asr_command(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML of these flags, such as a run's run.yaml")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished run in the output folder")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in the output folder")] = False,
    keep_checkpoints: Annotated[bool, typer.Option("--keep-checkpoints", help="leave the checkpoints there")] = False,
    **flags: Any,
) -> None:
    """Adapt a Whisper to a language, with transcribed recordings.

    Any other flag is an option of the method, such as --where encoder or --bottleneck-dim 104; `mambavox info --method
    NAME` lists them. Flags override what --config says.
    """
    given = {key: value for key, value in flags.items() if value is not None} | parse_options(ctx.args)
    file = config
    if file is None and resume and "output" in given and (Path(given["output"]) / RUN_FILE).is_file():
        file = Path(given["output"]) / RUN_FILE
    if file is None:
        chosen = Seq2SeqConfig.from_mapping(given, "the command line")
    else:
        content = read_yaml(file)
        if given.get("method", content.get("method")) != content.get("method"):
            own = Seq2SeqConfig.__dataclass_fields__
            content = {key: value for key, value in content.items() if key in own}
        chosen = Seq2SeqConfig.from_mapping({**content, **given}, str(file))

    from mambavox.training.seq2seq.adapt import adapt_whisper

    try:
        result = adapt_whisper(
            chosen, resume=resume, overwrite=overwrite, keep_checkpoints=keep_checkpoints, console=OUT
        )
    except KeyboardInterrupt:
        OUT.print(f"interrupted; continue with: mambavox adapt --output {chosen.output_path} --resume", markup=False)
        raise typer.Exit(130) from None
    _print_result(result, chosen.output_path)


def asks_for_asr(arguments: Sequence[str]) -> bool:
    """Whether the arguments of ``mambavox adapt`` are those of speech recognition: by task, file or run to continue."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    values = {word: following for word, following in pairwise(words) if word.startswith("--")}
    if "--task" in values:
        return values["--task"] == TASK
    files = [Path(values["--config"])] if "--config" in values else []
    if "--resume" in words and "--output" in values:
        files.append(Path(values["--output"]) / RUN_FILE)
    for file in files:
        try:
            return read_yaml(file).get("task") == TASK
        except ConfigError:
            continue  # the command itself will say so
    return False


def _print_result(result: "Seq2SeqResult", output: Path) -> None:
    for part, figures in result.scores.items():
        count = figures["utterances"]
        OUT.print(f"{part}: WER {result.describe(part, 'wer')}, CER {result.describe(part, 'cer')}, {count} recordings")
    if result.skipped:
        OUT.print(f"{len(result.skipped)} recordings cannot be used; metrics.json says which and why")
    if result.left_out:
        OUT.print(f"{result.left_out} recordings left out: too long")
    for note in result.notes:
        OUT.print(note, markup=False)
    if result.new_token:
        OUT.print(f"{result.new_token} is a new token of the model", markup=False)
    parameters = result.parameters
    OUT.print(
        f"{parameters['total']:,} trainable parameters ({parameters['share_of_backbone']:.2%} of the backbone), "
        f"{result.seconds:.0f} s on {result.device}"
    )
    OUT.print(f"saved in {output}; try: mambavox transcribe FILE --model {output}", markup=False)


declare_flags(adapt_asr_command, Seq2SeqConfig, {"task": "Data", "epochs": "Training"})
