"""Figures of a finished run on data: one way for every task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mambavox.asr.metrics import TranscriptScores
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.transcript import Transcript
from mambavox.asr.whisper import WhisperTranscriber
from mambavox.asr.whisper_decoding import WhisperDecoding
from mambavox.errors import ConfigError, RunError
from mambavox.evaluation.classifier import AudioClassifier
from mambavox.runs.config import AdaptConfig, TranscriptConfig
from mambavox.runs.folder import read_run
from mambavox.runs.plots import count_confusions
from mambavox.runs.result import RunResult
from mambavox.training.classify import data as labelled
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.classify.objective import class_rows, probabilities, score
from mambavox.training.configs import ADAPT_TASKS, load_config
from mambavox.training.features import class_indices
from mambavox.training.recognition import score_split
from mambavox.training.splits import ALL, RunData, Split, choose_splits
from mambavox.training.transcripts import load_all, load_transcripts

_AT_ONCE = 64  # recordings whose waveforms are in memory


@dataclass(frozen=True)
class ClassScores:
    """Figures of one class.

    Attributes:
        label: the class.
        recordings: how many it has.
        correct: how many of them were recognised.
        mistaken_for: the class that it is most often taken for, if any.
        f1: of the class, 0 to 1: unlike the recall, it counts what was taken for it, too.
    """

    label: str
    recordings: int
    correct: int
    mistaken_for: str | None
    f1: float

    @property
    def recall(self) -> float:
        """Share of its recordings that were recognised, 0 to 1."""
        return self.correct / self.recordings


@dataclass(frozen=True)
class Classification:
    """Figures of a classifier on one split.

    Attributes:
        figures: accuracy with its interval, macro F1 and counts.
        labels: the classes, in the order of the confusion counts.
        confusion: ``(classes, classes)`` recordings of the row's class that were taken for the column's.
        crop_seconds: what the model hears at once.
        longer: recordings that are longer than that.
        whole: whether these were heard whole, in windows, and not their first ``crop_seconds`` alone, as in training.
        rows: what became of each recording, as in ``predictions.csv``.
    """

    figures: Mapping[str, Any]
    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    crop_seconds: float
    longer: int
    whole: bool
    rows: list[dict[str, Any]]

    def describe_longer(self) -> str:
        """What was done about recordings that are longer than what the model hears at once; empty without such."""
        if not self.longer:
            return ""
        those = (
            f"{self.longer} of {self.figures['recordings']} recordings are longer than the {self.crop_seconds:.2f} s"
        )
        if self.whole:
            return f"{those} that the model hears at once: they were heard whole, as the mean over windows"
        return (
            f"{those} that the model hears at once: only their beginnings were scored, as in training; --whole hears "
            "all of them, as `mambavox predict` does"
        )

    def classes(self) -> list[ClassScores]:
        """Figures of each class that occurs, the worst first."""
        rows = []
        for index, counts in enumerate(self.confusion):
            if not counts.sum():
                continue
            wrong = counts.copy()
            wrong[index] = 0
            mistaken_for = self.labels[int(wrong.argmax())] if wrong.any() else None
            correct, total, taken = int(counts[index]), int(counts.sum()), int(self.confusion[:, index].sum())
            rows.append(ClassScores(self.labels[index], total, correct, mistaken_for, 2 * correct / (total + taken)))
        return sorted(rows, key=lambda row: row.recall)

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        longer = {"crop_seconds": self.crop_seconds, "longer": self.longer, "whole": self.whole}
        return {**self.figures, **longer, "labels": list(self.labels), "confusion": self.confusion.tolist()}


SplitScores: TypeAlias = Classification | TranscriptScores
"""Scores of one split, by the task."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a run on some data.

    Attributes:
        data: the data.
        task: of the run.
        scores: of each split.
        left_out: name, split and reason of the recordings that could not be used.
        notes: name, split and what is wrong with the transcript, of recordings whose text is not whole.
        selects_on_test: the run's best epoch was chosen on the test split, which makes the figures there optimistic.
    """

    data: str
    task: str
    scores: Mapping[str, SplitScores]
    left_out: list[dict[str, str]]
    notes: list[dict[str, str]]
    selects_on_test: bool = False

    def to_mapping(self) -> dict[str, Any]:
        """For JSON, with confusions and every utterance."""
        splits = {name: _mapping(scores) for name, scores in self.scores.items()}
        return {
            "data": self.data,
            "task": self.task,
            "splits": splits,
            "left_out": self.left_out,
            "notes": self.notes,
            "selects_on_test": self.selects_on_test,
        }


def _mapping(scores: SplitScores) -> dict[str, Any]:
    if isinstance(scores, Classification):
        return scores.to_mapping()
    rows = [{**utterance.to_mapping(), "alignment": utterance.alignment} for utterance in scores.utterances]
    return {
        **scores.to_mapping(),
        "substitutions": scores.confusions("S", 50),
        "deletions": scores.confusions("D", 50),
        "insertions": scores.confusions("I", 50),
        "rows": rows,
    }


@dataclass(frozen=True)
class EvaluationOptions:
    """How a run is evaluated.

    Attributes:
        data: recordings with targets; default the run's own, divided as in the run.
        split: name of a split, or ``all``; default the run's test splits (valid where there are none), or all of other
            data.
        drop_splits: values of the split column that are left out, by commas; default as in the run, of other data none.
        label_column: column of the class; default as in the run.
        text_column: column of the transcript; default as in the run.
        audio_column: column of the recordings; default as in the run.
        on_error: what to do about recordings that cannot be used.
        batch_size: recordings at a time; default as in the run.
        whole: a classifier hears recordings whole, as the mean over windows, where they are longer than what it hears
            at once; default: their beginnings, as in training.
        beam_size: of a recogniser's search; default that of the run, 1 (greedy) of a CTC model.
        backbone: where the run's backbone lies now, if no longer where it was.
        trim_encoder: Whisper: encode no more than the longest recording of a batch; default as in the run.
        device: where to run; default a GPU if there is one.
    """

    data: str | None = None
    split: str | None = None
    drop_splits: str | None = None
    label_column: str | None = None
    text_column: str | None = None
    audio_column: str | None = None
    on_error: Literal["raise", "skip"] = "raise"
    batch_size: int | None = None
    whole: bool | None = None
    beam_size: int | None = None
    backbone: str | None = None
    trim_encoder: bool | None = None
    device: str | None = None


_ONLY = {
    "label_column": ("classify",),
    "whole": ("classify",),
    "text_column": ("ctc", "whisper"),
    "beam_size": ("ctc", "whisper"),
    "trim_encoder": ("whisper",),
}
"""Options that are of some tasks alone."""


def evaluate(
    run: str | Path, options: EvaluationOptions = EvaluationOptions(), *, console: Console | None = None
) -> Evaluation:
    """Score a finished run.

    Args:
        run: the run folder.
        options: on what, and how.
        console: where progress goes.

    Raises:
        RunError: the folder holds no finished run, or no recording is left to score.
        ConfigError: an option is of another task.
        DataError: the data have no such split, no targets, or classes that the classifier does not know.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
    """
    read_run(run, ADAPT_TASKS, "mambavox evaluate")
    trained = load_config(run)
    assert isinstance(trained, AdaptConfig)
    for name, tasks in _ONLY.items():
        if getattr(options, name) is not None and trained.task not in tasks:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is for runs of {' and '.join(tasks)}, and {run} is one of {trained.task}")
    given: dict[str, Any] = {
        name: value
        for name in ("data", "drop_splits", "label_column", "text_column", "audio_column", "on_error")
        if (value := getattr(options, name)) is not None
    }
    if given.get("data", trained.data) != trained.data:
        given.setdefault("drop_splits", None)  # the run's are values of its own data
    config = trained.replace(**given)
    other = config.data != trained.data and options.split in (None, ALL)
    predictor = _load(run, config, options, as_in_run=not other)
    # A classifier's own data as a whole are one confusion; a recogniser's splits are told apart.
    undivided = other or (options.split == ALL and config.task == "classify")
    data = _read(config, predictor, console, everything=undivided)
    chosen = choose_splits(data, ALL if undivided else options.split, config.given_data)
    notes: list[dict[str, str]] = []
    scores = {name: _score(name, split, predictor, config, options, notes) for name, split in chosen.items()}
    if not scores:
        raise RunError(f"{run}: no recording to score")
    return Evaluation(config.given_data, config.task, scores, data.left_out, notes, data.selects_on_test)


_Predictor: TypeAlias = AudioClassifier | SpeechRecognizer | WhisperTranscriber


def _load(run: str | Path, config: AdaptConfig, options: EvaluationOptions, *, as_in_run: bool) -> _Predictor:
    if config.task == "classify":
        return AudioClassifier.from_pretrained(run, backbone=options.backbone, device=options.device)
    if config.task == "ctc":
        return SpeechRecognizer.from_pretrained(run, backbone=options.backbone, device=options.device)
    transcriber = WhisperTranscriber.from_pretrained(
        run, backbone=options.backbone, trim_encoder=options.trim_encoder, device=options.device
    )
    if as_in_run:
        transcriber.max_new_tokens = RunResult.load(run).details["max_new_tokens"]
    return transcriber


def _read(config: AdaptConfig, predictor: _Predictor, console: Console | None, *, everything: bool) -> RunData:
    if isinstance(config, ClassifyConfig):
        return labelled.load_all(config, console) if everything else labelled.load_labelled(config, console)
    assert isinstance(config, TranscriptConfig)
    if everything:
        return load_all(config, console)
    whisper = isinstance(predictor, WhisperTranscriber)
    longest = predictor.window / predictor.sampling_rate if isinstance(predictor, WhisperTranscriber) else None
    return load_transcripts(config, console, longest=longest, learns_silence=whisper)


def _score(
    name: str,
    split: Split,
    predictor: _Predictor,
    config: AdaptConfig,
    options: EvaluationOptions,
    notes: list[dict[str, str]],
) -> SplitScores:
    """Scores of a split; what is wrong with a transcript is added to ``notes``."""
    batch = options.batch_size or config.evaluation_batch
    if isinstance(predictor, AudioClassifier):
        return _score_classes(name, split, predictor, batch, whole=bool(options.whole))
    assert isinstance(config, TranscriptConfig)
    heard: list[str] = []
    for start in range(0, len(split), _AT_ONCE):
        examples: Sequence[Any] = split.examples[start : start + _AT_ONCE]
        waveforms = [example.read(predictor.sampling_rate) for example in examples]
        found: Sequence[Transcript]
        if isinstance(predictor, SpeechRecognizer):
            found = predictor.transcribe(waveforms, batch_size=batch, beam_size=options.beam_size or 1)
        else:
            search = WhisperDecoding(num_beams=options.beam_size or predictor.num_beams)
            found = predictor.transcribe(waveforms, batch_size=batch, decoding=search)
        heard += [item.text for item in found]
        for example, item in zip(examples, found, strict=True):
            notes += [{"name": example.name, "split": name, "note": note} for note in item.notes]
    return score_split(split, heard, config.language)


def _score_classes(name: str, split: Split, classifier: AudioClassifier, batch: int, *, whole: bool) -> Classification:
    labels = classifier.labels
    targets = np.array(class_indices(split.examples, labels))
    if whole:
        place = {label: number for number, label in enumerate(labels)}
        found = np.zeros((len(split), len(labels)), dtype=np.float32)
        for number, item in enumerate(classifier.predict(split.examples, batch_size=batch)):
            for prediction in item.predictions:
                found[number, place[prediction["label"]]] = prediction["score"]
        predicted = found.argmax(axis=1)
    else:
        logits = classifier.logits(split.examples, batch)
        found, predicted = probabilities(logits), logits.argmax(axis=1)
    crop = classifier.front_end.crop_seconds
    longer = sum(seconds > crop for seconds in split.seconds)
    rows = class_rows(name, split, predicted, found, labels)
    confusion = count_confusions(rows, labels)
    return Classification(score(targets, predicted, labels).to_mapping(), labels, confusion, crop, longer, whole, rows)
