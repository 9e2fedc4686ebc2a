"""``mambavox transcribe`` of recordings with a CTC model."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambavox import assets
from mambavox.asr.live import Endpointing
from mambavox.asr.recognizer import Search, SpeechRecognizer
from mambavox.cli.transcribe_long import LongRecordings
from mambavox.cli.transcribe_options import TranscribeOptions
from mambavox.cli.transcribe_output import Recording, Results
from mambavox.data import duration
from mambavox.errors import AudioError, ConfigError
from mambavox.hub import backbone_under


def transcribe_with_ctc(options: TranscribeOptions, recordings: Sequence[Recording]) -> None:
    """Transcribe recordings and print or write what is heard.

    Args:
        options: what was asked for.
        recordings: in their order.

    Raises:
        ConfigError: the model, a word or the language model does not fit.
        typer.Exit: a recording could not be read, or its text not be written; the others are done.
    """
    lm_words = None if options.lm_words is None else _read_words(options.lm_words)
    recognizer = SpeechRecognizer.from_pretrained(options.model_name, backbone=options.backbone, device=options.device)
    hot_words = [recognizer.as_transcribed(word) for word in options.hot_words.split(",") if word.strip()]
    search = _search(options, recognizer, hot_words, lm_words)
    results = Results(options, len(recordings) > 1)
    long: LongRecordings | None = None
    for recording in recordings:
        broken, file = None, recording.file
        try:
            whole = duration(file) <= options.whole_seconds
            if whole:
                waveform = recognizer.read(file, whole_seconds=math.inf)
                transcript = recognizer.transcribe([waveform], search=search)[0]
                results.begin(recording)
                results.print_text(transcript)
            else:
                long = long or LongRecordings(
                    recognizer,
                    endpointing=Endpointing(options.pause_seconds, options.segment_seconds),
                    search=search,
                    settings=_settings(options, hot_words),
                    timestamps=options.timestamps,
                    quiet=options.as_json,
                )
                results.begin(recording)
                transcript, broken = long.transcribe(file, recording.folder(options.output))
        except (AudioError, OSError) as error:
            results.missed(recording, error)
            continue
        if results.write(recording, transcript, broken) and long is not None and not whole:
            long.forget(file, recording.folder(options.output))
    results.finish()


def _search(
    options: TranscribeOptions, recognizer: SpeechRecognizer, hot_words: Sequence[str], lm_words: Sequence[str] | None
) -> Search | None:
    """What finds the text of a recording; ``None`` where that is greedy search."""
    search: Search | None = None
    if options.lm is not None:
        from mambavox.asr.language_model import LanguageModelSearch

        search = LanguageModelSearch(
            options.lm,
            recognizer.tokenizer,
            words=lm_words,
            weight=options.lm_weight,
            word_score=options.word_score,
            beam_size=options.beam_size or LanguageModelSearch.BEAM_SIZE,
        )
    return recognizer.search(
        beam_size=options.beam_size or 1,
        hot_words=hot_words,
        hot_word_weight=options.hot_word_weight,
        search=search,
    )


def _settings(options: TranscribeOptions, hot_words: Sequence[str]) -> Mapping[str, Any]:
    """All that the transcript of a long recording depends on."""
    model = assets.locate(options.model_name)
    return {
        "beam_size": options.beam_size,
        "hot_words": hot_words,
        "hot_word_weight": options.hot_word_weight,
        "lm": _identify(options.lm),
        "lm_words": _identify(options.lm_words),
        "lm_weight": options.lm_weight,
        "word_score": options.word_score,
        "model": _identify(model),
        "backbone": _identify(backbone_under(model, options.backbone)),
    }


def _read_words(path: Path) -> list[str]:
    """Words of a list."""
    try:
        return path.expanduser().read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected words, one a line: --lm-words") from error


def _identify(source: str | Path | None) -> list[Any]:
    """What tells whether a file, or a folder's weights, are still the same; a name on the Hub stands for itself."""
    if source is None or not (path := Path(source).expanduser()).exists():
        return [source]
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return [str(path.resolve()), *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]
