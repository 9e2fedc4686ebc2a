"""Error rates of a saved recogniser on data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from mambavox.asr.metrics import TranscriptScores, score_transcripts
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.text import normalize_text
from mambavox.data import AudioProblem, Example, check_audio
from mambavox.errors import DataError, RunError
from mambavox.evaluation.transcriber import WhisperTranscriber, load_seq2seq_config
from mambavox.training.backbone import quiet_transformers
from mambavox.training.recognition.config import RecognitionConfig
from mambavox.training.recognition.finetune import RecognitionResult
from mambavox.training.recognition.parts import SpeechPart, load_all, load_parts
from mambavox.training.run_config import RUN_FILE, read_yaml
from mambavox.training.seq2seq import transcripts
from mambavox.training.seq2seq.result import Seq2SeqResult

_AT_ONCE = 64


@dataclass(frozen=True)
class RecognitionEvaluation:
    """Error rates of a recogniser.

    Attributes:
        data: the data.
        scores: of each part.
        left_out: name and reason of the recordings that could not be used.
    """

    data: str
    scores: Mapping[str, TranscriptScores]
    left_out: list[dict[str, str]]

    def to_mapping(self) -> dict[str, Any]:
        """For JSON, with confusions and every utterance."""
        parts = {
            part: {
                **score.to_mapping(),
                "substitutions": score.confusions("S", 50),
                "deletions": score.confusions("D", 50),
                "insertions": score.confusions("I", 50),
                "rows": [
                    {**utterance.to_mapping(), "alignment": utterance.alignment} for utterance in score.utterances
                ],
            }
            for part, score in self.scores.items()
        }
        return {"data": self.data, "parts": parts, "left_out": self.left_out}


def is_recognition_run(run: str | Path) -> bool:
    """Whether a folder was written by ``mambavox finetune``."""
    file = Path(run) / RUN_FILE
    return file.is_file() and "vocabulary_size" in read_yaml(file)


def evaluate_recognition(
    run: str | Path,
    *,
    data: str | None = None,
    part: str | None = None,
    text_column: str | None = None,
    audio_column: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    batch_size: int | None = None,
    beam_size: int = 1,
    base_model: str | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> RecognitionEvaluation:
    """Score a finished run's recogniser.

    Args:
        run: the run folder.
        data: recordings with transcripts; default the run's own, divided as there.
        part: name of a part, or ``all``; default the run's test parts (valid where there are none), all of other data.
        text_column: column of the transcript; default as in the run.
        audio_column: column of the recordings; default as in the run.
        on_error: what to do about recordings that cannot be used.
        batch_size: recordings at a time; default as in the run.
        beam_size: of the search; 1 is greedy.
        base_model: where the model under a run's adapter lies now, if no longer where it was.
        device: where to run; default a GPU if there is one.
        console: where progress goes.

    Raises:
        RunError: the folder holds no finished run.
        DataError: the data have no such part or no transcripts.
    """
    RecognitionResult.load(run)  # says what is missing where the run is not finished
    config = RecognitionConfig.load(Path(run) / RUN_FILE)
    changes: dict[str, Any] = {"on_error": on_error}
    if text_column or audio_column:
        changes.update(text_column=text_column or config.text_column, audio_column=audio_column or config.audio_column)
    chosen: dict[str, SpeechPart]
    if data is not None and data != config.data and part in (None, "all"):
        everything, left_out = load_all(config.replace(**changes, data=data), console)
        named = chosen = {"all": everything}
    else:
        parts = load_parts(config.replace(**changes, data=data or config.data), console)
        left_out = parts.left_out
        named = {"train": parts.train, "valid": parts.valid, **parts.tests}
        if part == "all":
            chosen = named
        elif part is not None:
            chosen = {part: named.get(part, SpeechPart())}
        else:
            chosen = parts.tests or {"valid": parts.valid}
    for name, members in chosen.items():
        if part != "all" and not len(members):
            there = ", ".join(key for key, value in named.items() if len(value))
            raise DataError(
                f"{data or config.data}: has no {name} part; it has {there}: choose one of them with --part"
            )
    with quiet_transformers():
        recognizer = SpeechRecognizer.from_pretrained(run, base_model=base_model, device=device)
    scores = {
        name: _score(members, recognizer, config, batch_size or config.batch_size, beam_size)
        for name, members in chosen.items()
        if len(members)
    }
    if not scores:
        raise RunError(f"{run}: no recording to score")
    return RecognitionEvaluation(data or config.data or "", scores, left_out)


def evaluate_whisper(
    run: str | Path,
    *,
    data: str | None = None,
    part: str | None = None,
    text_column: str | None = None,
    audio_column: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    batch_size: int | None = None,
    base_model: str | None = None,
    trim_encoder: bool | None = None,
    device: str | None = None,
) -> RecognitionEvaluation:
    """Score a finished run's Whisper, with the search that the run was configured with.

    Args:
        run: folder that ``mambavox adapt --task asr`` wrote.
        data: recordings with transcripts; default the run's own, divided as there.
        part: name of a part, or ``all``; default the run's test part (valid where there is none), all of other data.
        text_column: column of the transcript; default as in the run.
        audio_column: column of the recordings; default as in the run.
        on_error: what to do about recordings that cannot be used.
        batch_size: recordings at a time; default as in the run.
        base_model: where the run's backbone lies now, if no longer where it was.
        trim_encoder: encode no more than the longest recording of a batch; default as in the run.
        device: where to run; default a GPU if there is one.

    Raises:
        RunError: the folder holds no finished run.
        DataError: the data have no such part or no transcripts.
    """
    config = load_seq2seq_config(Path(run))
    transcriber = WhisperTranscriber.from_pretrained(run, backbone=base_model, trim_encoder=trim_encoder, device=device)
    changes: dict[str, Any] = {
        "data": data or config.data,
        "text_column": text_column or config.text_column,
        "audio_column": audio_column or config.audio_column,
        "on_error": on_error,
    }
    chosen: dict[str, tuple[list[Example], list[str]]]
    changed = config.replace(**changes)
    if data is not None and data != config.data and part in (None, "all"):
        examples, problems = transcripts.read_transcribed(changed)
        usable, unusable = check_audio(examples, min_seconds=config.min_seconds, on_error=on_error)
        column = transcripts.text_column(usable, changed.text_column, str(changed.data))
        chosen = {"all": (usable, transcripts.texts_of(usable, column, config.language, normalize=True))}
        problems += unusable
    else:
        # As at the end of the run, whose scores these are.
        transcriber.max_new_tokens = Seq2SeqResult.load(Path(run)).max_new_tokens
        longest = transcriber.window / transcriber.sampling_rate
        splits, problems, too_long = transcripts.load_transcripts(changed, longest)
        if too_long:
            problems.append(AudioProblem(f"{too_long} recordings", f"longer than {changed.max_seconds or longest:g} s"))
        named = {name: getattr(splits, name) for name in ("train", "valid", "test") if getattr(splits, name)}
        if part not in (None, "all", *named):
            raise DataError(f"{changed.data}: has no {part} part; it has {', '.join(named)}: choose one with --part")
        names = list(named) if part == "all" else [part or ("test" if "test" in named else "valid")]
        if names[0] not in named:
            raise DataError(f"{changed.data}: the run held nothing back; choose --part train, or other --data")
        chosen = {}
        for name in names:
            column = transcripts.text_column(named[name], changed.text_column, str(changed.data))
            chosen[name] = (named[name], transcripts.texts_of(named[name], column, config.language, normalize=True))
    left_out = [{"name": problem.name, "reason": problem.reason} for problem in problems]
    scores = {}
    for name, (examples, said) in chosen.items():
        heard: list[str] = []
        for start in range(0, len(examples), _AT_ONCE):
            waveforms = [example.read(transcriber.sampling_rate) for example in examples[start : start + _AT_ONCE]]
            found = transcriber.transcribe(waveforms, batch_size=batch_size or config.batch_size)
            heard += [normalize_text(item.text, config.language) for item in found]
        names = [example.name for example in examples]
        scores[name] = score_transcripts(said, heard, names=names, language=config.language)
    return RecognitionEvaluation(str(changes["data"]), scores, left_out)


def _score(
    part: SpeechPart, recognizer: SpeechRecognizer, config: RecognitionConfig, batch_size: int, beam_size: int
) -> TranscriptScores:
    texts: list[str] = []
    for start in range(0, len(part), _AT_ONCE):
        waveforms = [example.read(recognizer.sampling_rate) for example in part.examples[start : start + _AT_ONCE]]
        found = recognizer.transcribe(waveforms, batch_size=batch_size, beam_size=beam_size)
        texts += [normalize_text(item.text, config.language) if config.normalize else item.text for item in found]
    names = [example.name for example in part.examples]
    return score_transcripts(part.texts, texts, names=names, language=config.language)
