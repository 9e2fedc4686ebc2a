"""``mambavox transcribe``: what is said in recordings."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mambavox.cli.console import OUT, print_error, print_json

FORMATS = ("txt", "srt", "json")


def transcribe_command(
    files: Annotated[list[Path], typer.Argument(help="recordings of any length: wav, flac, ogg, mp3")],
    model: Annotated[Path | None, typer.Option(help="run folder that `mambavox adapt --task asr` wrote")] = None,
    model_dir: Annotated[Path | None, typer.Option(help="folder of such run folders, one a language")] = None,
    language: Annotated[
        str | None, typer.Option(help="code of the language, or auto: the likeliest (default: the only adapter's)")
    ] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="divide the transcripts into timed segments")
    ] = False,
    output: Annotated[
        str | None, typer.Option(help="write files beside the recordings: txt, srt, json, or several: srt,json")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="recordings at a time")] = 16,
    backbone: Annotated[
        str | None, typer.Option(help="where the runs' backbone lies now (default: where it was)")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: a GPU if there is one)")] = None,
) -> None:
    """Write what is said in recordings, with one Whisper and an adapter, or one of many.

    A recording that cannot be read is reported by name; the others are still done, and the exit code is 1.
    """
    if (model is None) == (model_dir is None):
        raise typer.BadParameter("expected either --model RUN or --model-dir FOLDER")
    formats = [] if output is None else output.split(",")
    for name in formats:
        if name not in FORMATS:
            raise typer.BadParameter(f"--output {name}; expected {', '.join(FORMATS)}")

    from mambavox.data import read_audio
    from mambavox.errors import AudioError
    from mambavox.evaluation.transcriber import Transcript, WhisperTranscriber, write_srt
    from mambavox.training.run_folder import to_json, write_atomically

    load: dict[str, Any] = {"backbone": backbone, "device": device}
    if model is not None:
        transcriber = WhisperTranscriber.from_pretrained(model, **load)
    else:
        transcriber = WhisperTranscriber.from_folder(Path(str(model_dir)), **load)
    rate = transcriber.sampling_rate
    failed = False
    for start in range(0, len(files), batch_size):
        waveforms: dict[Path, Any] = {}
        for file in files[start : start + batch_size]:
            try:
                waveforms[file] = (read_audio(file, rate), rate)
            except AudioError as error:
                failed = True
                print_error(str(error))
        heard: list[Transcript] = transcriber.transcribe(
            list(waveforms.values()), language, timestamps=timestamps or "srt" in formats, batch_size=batch_size
        )
        for file, transcript in zip(waveforms, heard, strict=True):
            contents = {
                "txt": transcript.text + "\n",
                "srt": write_srt(transcript),
                "json": to_json({"file": str(file), **asdict(transcript)}),
            }
            for name in formats:
                write_atomically(file.with_suffix(f".{name}"), contents[name])
            if timestamps:
                print_json({"file": str(file), **asdict(transcript)})
            else:
                OUT.print(f"{file}  {transcript.text}", markup=False)
    if failed:
        raise typer.Exit(1)
