"""``mambavox transcribe`` with a Whisper, as it is or as `mambavox adapt --task whisper` adapted it."""

from collections.abc import Sequence
from typing import Any

from mambavox.asr.whisper import WhisperTranscriber
from mambavox.cli.transcribe_options import TranscribeOptions
from mambavox.cli.transcribe_output import Recording, Results
from mambavox.data import read_audio
from mambavox.errors import AudioError


def transcribe_with_whisper(options: TranscribeOptions, recordings: Sequence[Recording]) -> None:
    """Transcribe recordings and print or write what is heard.

    Args:
        options: what was asked for.
        recordings: in their order.

    Raises:
        ConfigError: the model or the language does not fit.
        RunError: there are no finished runs.
        typer.Exit: a recording could not be read, or its text not be written; the others are done.
    """
    loading: dict[str, Any] = {
        "backbone": options.backbone,
        "trim_encoder": options.trim_encoder,
        "device": options.device,
    }
    if options.model_dir is not None:
        transcriber = WhisperTranscriber.from_folder(options.model_dir, **loading)
    else:
        transcriber = WhisperTranscriber.from_pretrained(options.model_name, **loading)
    timed = options.timestamps or options.as_json or any(form != "txt" for form in options.formats)
    results = Results(options, len(recordings) > 1)
    for start in range(0, len(recordings), options.batch_size):
        batch = recordings[start : start + options.batch_size]
        read = {}
        for recording in batch:
            try:
                read[recording] = (read_audio(recording.file, transcriber.sampling_rate), transcriber.sampling_rate)
            except (AudioError, OSError) as error:
                results.missed(recording, error)
        heard = transcriber.transcribe(
            list(read.values()), options.language, timestamps=timed, batch_size=options.batch_size
        )
        for recording, transcript in zip(read, heard, strict=True):
            results.begin(recording)
            results.print_text(transcript)
            results.write(recording, transcript)
    results.finish()
