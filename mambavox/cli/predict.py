"""``mambavox predict``: name the class of recordings."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambavox.cli.console import OUT, print_error, print_json
from mambavox.cli.flags import Device, chosen_device

if TYPE_CHECKING:
    from mambavox.evaluation.classifier import Prediction, RecordingPrediction


def predict_command(
    run: Annotated[Path, typer.Argument(help="Run folder that `mambavox adapt` wrote.")],
    files: Annotated[
        list[Path], typer.Argument(help="Recordings of any length, folders of them, or manifests that list them.")
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each, the likeliest first.")] = 1,
    windows: Annotated[
        bool, typer.Option("--windows", help="Tell what was heard in each window, with its start and end in seconds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every class.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: a line for each recording, or window, a column for each class.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 32,
    backbone: Annotated[
        str | None, typer.Option(help="Where the run's backbone lies now (default: where it was).")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """Name the class of recordings with the classifier of a finished run.

    A recording is heard whole: where it is longer than what the model hears at once, the probabilities are the mean
    over windows of that length, of which the last reaches back to be whole. A recording that cannot be read is reported
    by name; the others are still done, and the exit code is 1.

    Example: mambavox predict runs/mine recording.wav
    """
    from mambavox.cli.transcribe_output import find_recordings
    from mambavox.errors import AudioError, ConfigError
    from mambavox.evaluation.classifier import AudioClassifier
    from mambavox.runs.predictions import probability_column

    if as_json and as_csv:
        raise ConfigError("--json and --csv are two forms of the output; expected one of them")
    sources = [recording.file for recording in find_recordings(files)]
    classifier = AudioClassifier.from_pretrained(run, backbone=backbone, device=chosen_device(device))
    table = csv.writer(sys.stdout, lineterminator="\n")
    if as_csv:
        table.writerow(["file", "start", "end", "predicted", *map(probability_column, classifier.labels)])
    failed = False
    rows: list[dict[str, Any]] = []
    for file, found in zip(sources, classifier.predict(sources, batch_size=batch_size, on_error="return"), strict=True):
        if isinstance(found, AudioError):
            failed = True
            print_error(str(found))
            rows.append({"file": str(file), "error": str(found)})
            continue
        if as_csv:
            table.writerows(_cells(file, found, classifier.labels, windows))
        elif as_json:
            each = {"windows": found.windows} if windows else {}
            rows.append({"file": str(file), "seconds": found.seconds, "predictions": found.predictions, **each})
        else:
            _print(file, found, top, windows, classifier.front_end.crop_seconds)
    if as_json:
        print_json(rows)
    if failed:
        raise typer.Exit(1)


def _cells(file: object, found: "RecordingPrediction", labels: Sequence[str], windows: bool) -> list[list[Any]]:
    whole = (0.0, found.seconds, found.predictions)
    stretches = [(item["start"], item["end"], item["predictions"]) for item in found.windows] if windows else [whole]
    lines = []
    for start, end, predictions in stretches:
        probabilities = {item["label"]: item["score"] for item in predictions}
        figures = (f"{probabilities[label]:.6f}" for label in labels)
        lines.append([str(file), f"{start:.3f}", f"{end:.3f}", predictions[0]["label"], *figures])
    return lines


def _print(file: object, found: "RecordingPrediction", top: int, windows: bool, longest: float) -> None:
    if windows:
        for item in found.windows:
            times = f"{item['start']:.2f}-{item['end']:.2f} s"
            OUT.print(f"{file}  {times}  {_words(item['predictions'][:top])}", markup=False)
    count = len(found.windows)
    how = f"  (mean of {count} windows of {longest:.2f} s)" if count > 1 else ""
    if count > 1 or not windows:
        OUT.print(f"{file}  {_words(found.predictions[:top])}{how}", markup=False)


def _words(predictions: "Sequence[Prediction]") -> str:
    return "  ".join(f"{item['label']} {item['score']:.3f}" for item in predictions)
