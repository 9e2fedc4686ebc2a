"""``mambavox evaluate``: figures of a finished run on data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambavox.cli.console import ERR, OUT, print_json

if TYPE_CHECKING:
    from mambavox.evaluation.recognition import RecognitionEvaluation


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="run folder that `mambavox adapt` or `mambavox finetune` wrote")],
    data: Annotated[
        str | None,
        typer.Option(help="recordings with labels or transcripts (default: the run's own, divided as there)"),
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="train, valid, test or all (default: test; all of other data)")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="column of the class (default: the run's)")] = None,
    text_column: Annotated[str | None, typer.Option(help="column of the transcript (default: the run's)")] = None,
    audio_column: Annotated[str | None, typer.Option(help="column of the recordings (default: the run's)")] = None,
    on_error: Annotated[str, typer.Option(help="about unusable recordings: raise an error, or skip them")] = "raise",
    batch_size: Annotated[int | None, typer.Option(min=1, help="recordings at a time (default: the run's)")] = None,
    worst: Annotated[int, typer.Option(min=0, help="how many of the worst classes or utterances to print")] = 5,
    beam_size: Annotated[int, typer.Option(min=1, help="of a recogniser's search; 1: greedy")] = 1,
    base_model: Annotated[
        str | None, typer.Option(help="of a recogniser: where the model under its adapter lies now")
    ] = None,
    trim_encoder: Annotated[
        bool | None,
        typer.Option(
            "--trim-encoder/--no-trim-encoder",
            help="Whisper: encode no more than the longest recording of a batch (default: the run's)",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: a GPU if there is one)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, with the confusion counts")] = False,
) -> None:
    """Score a finished run.

    A classifier: accuracy with its 95 % interval, macro F1, confusions, the worst classes. A recogniser: word and
    character error rates with their intervals, the worst utterances, the most frequent errors.
    """
    parts, ways = ("train", "valid", "test", "all"), ("raise", "skip")
    if on_error not in ways:
        raise typer.BadParameter(f"--on-error {on_error}; expected {' or '.join(ways)}")
    from mambavox.evaluation.recognition import evaluate_recognition, evaluate_whisper, is_recognition_run
    from mambavox.training.seq2seq.config import is_whisper_run

    whisper = is_whisper_run(run)
    if whisper or is_recognition_run(run):
        given: Any = {"data": data, "part": part, "text_column": text_column, "audio_column": audio_column}
        given |= {"on_error": on_error, "batch_size": batch_size, "base_model": base_model, "device": device}
        if whisper and beam_size != 1:
            raise typer.BadParameter("--beam-size is for CTC models; a Whisper searches as its run was configured")
        if not whisper and trim_encoder is not None:
            raise typer.BadParameter(f"--trim-encoder is for a Whisper; {run} is a CTC run: leave it out")
        if whisper:
            rates = evaluate_whisper(run, trim_encoder=trim_encoder, **given)
        else:
            rates = evaluate_recognition(run, beam_size=beam_size, console=ERR, **given)
        _print_error_rates(rates, worst, as_json)
        return
    if base_model is not None or trim_encoder is not None:
        raise typer.BadParameter("--base-model and --trim-encoder are for recognisers, and this is a classifier")
    if part is not None and part not in parts:
        raise typer.BadParameter(f"--part {part}; expected {', '.join(parts)}")

    from mambavox.evaluation.evaluate import evaluate_run
    from mambavox.training.result import OPTIMISTIC

    choices: Any = {"part": part, "on_error": on_error}
    evaluation = evaluate_run(
        run,
        data=data,
        label_column=label_column,
        audio_column=audio_column,
        batch_size=batch_size,
        device=device,
        console=ERR,
        **choices,
    )
    if as_json:
        print_json(evaluation.to_mapping())
        return
    scores = evaluation.scores
    warning = f" ({OPTIMISTIC})" if evaluation.selects_on_test else ""
    OUT.print(f"{evaluation.data}, {evaluation.part}{warning}: {scores.clips} clips", markup=False)
    OUT.print(f"accuracy {scores}, macro F1 {scores.macro_f1:.3f}", markup=False)
    for problem in evaluation.skipped:
        OUT.print(f"left out: {problem.reason}", markup=False)
    if worst:
        OUT.print("worst classes:")
    for row in evaluation.classes()[:worst]:
        mistaken = f", most often taken for {row.mistaken_for}" if row.mistaken_for else ""
        OUT.print(f"  {row.label}: {row.correct} of {row.clips} ({row.recall:.1%}){mistaken}", markup=False)


def _print_error_rates(evaluation: "RecognitionEvaluation", worst: int, as_json: bool) -> None:
    if as_json:
        print_json(evaluation.to_mapping())
        return
    for row in evaluation.left_out:
        OUT.print(f"left out: {row['name']}: {row['reason']}", markup=False)
    for part, scores in evaluation.scores.items():
        OUT.print(f"{evaluation.data}, {part}: {len(scores.utterances)} recordings", markup=False)
        OUT.print(f"WER {scores.wer}, CER {scores.cer}", markup=False)
        counts = scores.wer.counts
        OUT.print(
            f"{counts.substitutions} substitutions, {counts.deletions} deletions, {counts.insertions} insertions in "
            f"{counts.length} words",
            markup=False,
        )
        if not worst:
            continue
        kinds: tuple[tuple[Any, str], ...] = (("S", "substituted"), ("D", "deleted"), ("I", "inserted"))
        for kind, title in kinds:
            frequent = scores.confusions(kind, worst)
            if frequent:
                pairs = ", ".join(f"{' -> '.join(filter(None, pair[:2]))} ({pair[2]})" for pair in frequent)
                OUT.print(f"most often {title}: {pairs}", markup=False)
        for utterance in scores.worst(worst):
            OUT.print(f"  {utterance.name}: WER {100 * utterance.words.rate:.0f} %", markup=False)
            said, heard = utterance.aligned()
            OUT.print(f"    said:  {said}", markup=False, soft_wrap=True)
            OUT.print(f"    heard: {heard}", markup=False, soft_wrap=True)
