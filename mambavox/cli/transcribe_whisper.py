"""``mambavox transcribe`` with a Whisper, as it is or as `mambavox adapt --task whisper` adapted it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mambavox.asr.speech_windows import SpeechDetector
from mambavox.asr.whisper import WhisperTranscriber
from mambavox.asr.whisper_decoding import CAREFUL
from mambavox.cli.transcribe_options import TranscribeOptions
from mambavox.cli.transcribe_output import Recording, Results
from mambavox.data import Waveform, read_audio
from mambavox.errors import AudioError

_BATCHES = 4  # whose windows are sorted by their lengths together


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
    asked: dict[str, Any] = {
        "timestamps": timed,
        "batch_size": options.batch_size,
        "decoding": replace(CAREFUL, **{"num_beams": transcriber.num_beams, **options.decoding}),
        "long_form": options.long_form or "batched",
        "detector": SpeechDetector() if options.vad else None,
    }
    results = Results(options, len(recordings) > 1)
    for group in _groups(recordings, transcriber, options.batch_size, results):
        heard = transcriber.transcribe([waveform for _, waveform in group], options.language, **asked)
        for (recording, _), transcript in zip(group, heard, strict=True):
            results.begin(recording)
            results.print_text(transcript)
            results.write(recording, transcript)
    results.finish()


def _groups(
    recordings: Sequence[Recording], transcriber: WhisperTranscriber, batch_size: int, results: Results
) -> Iterator[list[tuple[Recording, Waveform]]]:
    """Recordings that are heard together: enough for full batches, few enough for the memory."""
    group: list[tuple[Recording, Waveform]] = []
    windows = 0
    for recording in recordings:
        try:
            waveform = read_audio(recording.file, transcriber.sampling_rate)
        except (AudioError, OSError) as error:
            results.missed(recording, error)
            continue
        group.append((recording, waveform))
        windows += math.ceil(len(waveform) / transcriber.window)
        if windows >= _BATCHES * batch_size:
            yield group
            group, windows = [], 0
    if group:
        yield group
