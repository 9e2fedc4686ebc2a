"""``mambavox evaluate``: figures of a finished run on data."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambavox.cli.console import ERR, OUT, print_json
from mambavox.cli.flags import Device, OnError, chosen_device
from mambavox.cli.options import declare_options

if TYPE_CHECKING:
    from mambavox.asr.metrics import TranscriptScores
    from mambavox.evaluation.evaluate import Classification, Evaluation, EvaluationOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What the command takes, as typer wants it."""

    data: Annotated[
        str | None,
        typer.Option(help="Recordings with labels or transcripts (default: the run's own, divided as in the run)."),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(help="train, valid, test, another split's name, or all (default: test; all of other data)."),
    ] = None
    drop_splits: Annotated[
        str | None,
        typer.Option(
            help="Values of the split column to leave out, by commas (default: the run's; of other data none)."
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the plots, predictions.csv and scores.json (default: in the run's evaluations/)."
        ),
    ] = None
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst classes or utterances to print.")] = 5
    label_column: Annotated[str | None, typer.Option(help="Column of the class (default: the run's).")] = None
    text_column: Annotated[str | None, typer.Option(help="Column of the transcript (default: the run's).")] = None
    audio_column: Annotated[str | None, typer.Option(help="Column of the recordings (default: the run's).")] = None
    on_error: Annotated[OnError, typer.Option(help="What to do about recordings that cannot be used.")] = "raise"
    batch_size: Annotated[int | None, typer.Option(min=1, help="Recordings at a time (default: the run's).")] = None
    whole: Annotated[
        bool | None,
        typer.Option(
            "--whole",
            help="Classifiers: hear recordings whole, window by window, that are longer than what the model hears at "
            "once (default: their beginnings, as in training).",
        ),
    ] = None
    beam_size: Annotated[
        int | None,
        typer.Option(min=1, help="Recognisers: texts that the search keeps (default: as in the run; CTC: 1)."),
    ] = None
    trim_encoder: Annotated[
        bool | None,
        typer.Option(
            "--trim-encoder/--no-trim-encoder",
            help="Whisper: encode no more than the longest recording of a batch (default: as in the run).",
        ),
    ] = None
    backbone: Annotated[str | None, typer.Option(help="Where the run's backbone lies now (default: where it was).")] = (
        None
    )
    device: Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")] = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with confusions and every utterance.")] = False


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Run folder that `mambavox adapt` wrote.")], **flags: Any
) -> None:
    """Score a finished run on its own data or on other data.

    A classifier: accuracy with its 95 % interval, macro F1, the worst classes. A recogniser: word and character error
    rates with their intervals, the most frequent errors, the worst utterances.

    Example: mambavox evaluate runs/mine --split valid
    """
    from mambavox.evaluation.evaluate import EvaluationOptions, evaluate

    given = EvaluateOptions(**flags)
    values = {spec.name: getattr(given, spec.name) for spec in fields(EvaluationOptions)}
    options = EvaluationOptions(**{**values, "device": chosen_device(given.device)})
    evaluation = evaluate(run, options, console=ERR)
    _write(evaluation, run, options, given.output)
    if given.as_json:
        print_json(evaluation.to_mapping())
    else:
        _print(evaluation, given.worst)


declare_options(evaluate_command, EvaluateOptions)


def _print(evaluation: "Evaluation", worst: int) -> None:
    from mambavox.evaluation.evaluate import Classification
    from mambavox.runs.result import OPTIMISTIC

    for row in evaluation.left_out:
        OUT.print(f"left out: {row['name']}: {row['reason']}", markup=False)
    for row in evaluation.notes[:worst]:
        OUT.print(f"note: {row['name']}: {row['note']}", markup=False)
    if more := len(evaluation.notes[worst:]):
        OUT.print(f"note: {more} more texts are not whole; --json has them all", markup=False)
    for name, scores in evaluation.scores.items():
        warning = f" ({OPTIMISTIC})" if evaluation.selects_on_test and name == "test" else ""
        if isinstance(scores, Classification):
            _print_classification(f"{evaluation.data}, {name}{warning}", scores, worst)
        else:
            _print_error_rates(f"{evaluation.data}, {name}{warning}", scores, worst)


def _write(evaluation: "Evaluation", run: Path, options: "EvaluationOptions", output: Path | None) -> None:
    """Leave the files of an evaluation; a run folder that cannot be written into only misses them."""
    from mambavox.errors import RunError
    from mambavox.evaluation.files import evaluation_folder, write_evaluation

    folder = output or evaluation_folder(run, evaluation, options.data)
    try:
        names, problem = write_evaluation(evaluation, folder)
    except OSError as error:
        told = f"{folder}: cannot be written into ({error.strerror or error}); choose another folder with --output"
        if output is not None:
            raise RunError(told) from error
        ERR.print(told, markup=False)
        return
    ERR.print(f"{', '.join(names)}: in {folder}", markup=False)
    if problem:
        ERR.print(problem, markup=False)


def _print_classification(title: str, scores: "Classification", worst: int) -> None:
    from mambavox.runs.result import describe_scores

    OUT.print(f"{title}: {scores.figures['recordings']} recordings", markup=False)
    OUT.print(describe_scores(scores.figures), markup=False)
    if longer := scores.describe_longer():
        OUT.print(longer, markup=False)
    if worst:
        OUT.print("worst classes:")
    for row in scores.classes()[:worst]:
        mistaken = f", most often taken for {row.mistaken_for}" if row.mistaken_for else ""
        OUT.print(
            f"  {row.label}: {row.correct} of {row.recordings} ({row.recall:.1%}), F1 {row.f1:.3f}{mistaken}",
            markup=False,
        )


def _print_error_rates(title: str, scores: "TranscriptScores", worst: int) -> None:
    OUT.print(f"{title}: {len(scores.utterances)} recordings", markup=False)
    OUT.print(f"WER {scores.wer}, CER {scores.cer}", markup=False)
    counts = scores.wer.counts
    OUT.print(
        f"{counts.substitutions} substitutions, {counts.deletions} deletions, {counts.insertions} insertions in "
        f"{counts.length} words",
        markup=False,
    )
    if not worst:
        return
    kinds: tuple[tuple[Any, str], ...] = (("S", "substituted"), ("D", "deleted"), ("I", "inserted"))
    for kind, word in kinds:
        frequent = scores.confusions(kind, worst)
        if frequent:
            pairs = ", ".join(f"{' -> '.join(filter(None, pair[:2]))} ({pair[2]})" for pair in frequent)
            OUT.print(f"most often {word}: {pairs}", markup=False)
    for utterance in scores.worst(worst):
        OUT.print(f"  {utterance.name}: WER {100 * utterance.words.rate:.0f} %", markup=False)
        said, heard = utterance.aligned()
        OUT.print(f"    said:  {said}", markup=False, soft_wrap=True)
        OUT.print(f"    heard: {heard}", markup=False, soft_wrap=True)
