"""``mambavox transcribe`` with a Whisper, as it is or as `mambavox adapt --task whisper` adapted it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from mambavox.cli.console import OUT, print_error, print_json
from mambavox.cli.transcribe_output import check_outputs, write_outputs


def transcribe_with_whisper(
    files: Sequence[Path],
    *,
    model: str | None,
    model_dir: Path | None,
    language: str | None,
    forms: Sequence[str],
    output_dir: Path | None,
    timestamps: bool,
    as_json: bool,
    batch_size: int,
    backbone: str | None,
    trim_encoder: bool | None,
    device: str | None,
) -> None:
    """Transcribe recordings and print or write what is heard.

    Args:
        files: the recordings.
        model: a run folder, or a Whisper, or
        model_dir: a folder of run folders.
        language: its code, ``"auto"``, or none.
        forms: endings of the files to write.
        output_dir: where they go; beside each recording where not given.
        timestamps: print segments with their times.
        as_json: print JSON.
        batch_size: recordings at a time.
        backbone: where the Whisper under the adapters lies now.
        trim_encoder: encode no more than the longest recording of a batch; as the runs were trained where not given.
        device: where to run.

    Raises:
        ConfigError: two recordings would write the same file, or a folder cannot be written into.
        typer.Exit: a recording could not be read, or its text not be written; the others are done.
    """
    from mambavox.asr.whisper import WhisperTranscriber, write_srt, write_vtt
    from mambavox.data import read_audio
    from mambavox.errors import AudioError
    from mambavox.files import to_json

    check_outputs(files, forms, output_dir)
    if model_dir is not None:
        transcriber = WhisperTranscriber.from_folder(
            model_dir, backbone=backbone, trim_encoder=trim_encoder, device=device
        )
    else:
        transcriber = WhisperTranscriber.from_pretrained(
            str(model), backbone=backbone, trim_encoder=trim_encoder, device=device
        )
    rate, failed = transcriber.sampling_rate, False
    timed = timestamps or as_json or any(form != "txt" for form in forms)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(files), batch_size):
        waveforms: dict[Path, Any] = {}
        for file in files[start : start + batch_size]:
            try:
                waveforms[file] = (read_audio(file, rate), rate)
            except (AudioError, OSError) as error:
                failed = True
                print_error(str(error))
                rows.append({"file": str(file), "error": str(error)})
        heard = transcriber.transcribe(list(waveforms.values()), language, timestamps=timed, batch_size=batch_size)
        for file, transcript in zip(waveforms, heard, strict=True):
            row = {"file": str(file), **asdict(transcript)}
            rows.append(row)
            if timestamps and not as_json:
                for item in transcript.segments:
                    OUT.print(f"{file}  [{item.start:.2f} - {item.end:.2f}] {item.text}", markup=False)
            elif not as_json:
                OUT.print(f"{file}  {transcript.text}", markup=False)
            content = {"txt": transcript.text + "\n", "json": to_json(row)}
            content |= {"srt": write_srt(transcript), "vtt": write_vtt(transcript)}
            try:
                write_outputs(file, {form: content[form] for form in forms}, output_dir)
            except OSError as error:
                failed = True
                print_error(f"{file}: its text cannot be written ({error})")
                row["error"] = str(error)
    if as_json:
        print_json(rows)
    if failed:
        raise typer.Exit(1)
