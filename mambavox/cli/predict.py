"""``mambavox predict``: name the class of recordings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mambavox.cli.console import OUT, print_error, print_json
from mambavox.cli.flags import Device, chosen_device


def predict_command(
    run: Annotated[Path, typer.Argument(help="Run folder that `mambavox adapt` wrote.")],
    files: Annotated[list[Path], typer.Argument(help="Recordings, folders of them, or manifests that list them.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each, the likeliest first.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every class.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Recordings at a time.")] = 32,
    backbone: Annotated[
        str | None, typer.Option(help="Where the run's backbone lies now (default: where it was).")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """Name the class of recordings with the classifier of a finished run.

    A recording that cannot be read is reported by name; the others are still done, and the exit code is 1.

    Example: mambavox predict runs/mine recording.wav
    """
    from mambavox.cli.transcribe_output import find_recordings
    from mambavox.data import read_audio
    from mambavox.errors import AudioError
    from mambavox.evaluation.classifier import AudioClassifier

    classifier = AudioClassifier.from_pretrained(run, backbone=backbone, device=chosen_device(device))
    rate = classifier.front_end.sampling_rate
    failed = False
    rows: list[dict[str, Any]] = []
    sources = [recording.file for recording in find_recordings(files)]
    for start in range(0, len(sources), batch_size):
        waveforms = {}
        errors = {}
        for number, file in enumerate(sources[start : start + batch_size]):
            try:
                waveforms[number] = (read_audio(file, rate), rate)
            except AudioError as error:
                errors[number] = str(error)
        predictions = dict(zip(waveforms, classifier(list(waveforms.values()), batch_size=batch_size), strict=True))
        for number, file in enumerate(sources[start : start + batch_size]):
            if number in errors:
                failed = True
                print_error(errors[number])
                rows.append({"file": str(file), "error": errors[number]})
                continue
            rows.append({"file": str(file), "predictions": predictions[number]})
            if not as_json:
                best = "  ".join(f"{item['label']} {item['score']:.3f}" for item in predictions[number][:top])
                OUT.print(f"{file}  {best}", markup=False)
    if as_json:
        print_json(rows)
    if failed:
        raise typer.Exit(1)
