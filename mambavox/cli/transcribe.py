"""``mambavox transcribe``: recordings to text."""

from pathlib import Path
from typing import Any

from mambavox.cli.options import declare_options
from mambavox.cli.transcribe_options import TranscribeOptions
from mambavox.cli.transcribe_output import check_folder, check_outputs, find_recordings


def transcribe_command(**flags: Any) -> None:
    """Transcribe recordings of any length, or what is being said.

    The text is printed, and written into files with --format or --output. A recording that cannot be read, or whose
    text cannot be written, is reported by name; the others are still done, and the exit code is 1. A recording longer
    than --whole-seconds is heard block by block and printed as it is heard; if the command is killed, the same command
    goes on where it was.

    Example: mambavox transcribe interview.mp3 --format txt,srt --output subtitles
    """
    options = TranscribeOptions(**flags)
    recordings = find_recordings(options.files or [])
    if options.microphone and options.formats:
        check_folder(options.output or Path())
    check_outputs(recordings, options.formats, options.output)

    from mambavox.asr.whisper import recogniser_task
    from mambavox.devices import find_device

    find_device(options.device)
    task = "whisper" if options.model_dir is not None else recogniser_task(options.model_name, "mambavox transcribe")
    options.check_task(task)
    if task == "whisper":
        from mambavox.cli.transcribe_whisper import transcribe_with_whisper

        transcribe_with_whisper(options, recordings)
    elif options.microphone:
        from mambavox.cli.transcribe_microphone import transcribe_what_is_said

        transcribe_what_is_said(options)
    else:
        from mambavox.cli.transcribe_ctc import transcribe_with_ctc

        transcribe_with_ctc(options, recordings)


declare_options(transcribe_command, TranscribeOptions)
