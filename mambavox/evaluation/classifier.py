"""The classifier that a run saved."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mambavox.data import AudioSource, Example, Window, cut_windows
from mambavox.errors import AudioError, RunError
from mambavox.hub import load_adapter, quiet_transformers
from mambavox.runs.folder import LABELS_FILE, read_run
from mambavox.training.classify.backbone import load_backbone
from mambavox.training.classify.objective import batch_logits, predict_logits
from mambavox.training.features import FeatureDataset
from mambavox.training.front_end import FrontEnd


class Prediction(TypedDict):
    """A class and how likely it is.

    Attributes:
        label: the class.
        score: its probability, 0 to 1.
    """

    label: str
    score: float


class WindowPrediction(TypedDict):
    """What a classifier makes of a stretch of a recording.

    Attributes:
        start: of the stretch, in seconds.
        end: seconds.
        predictions: every class with its probability, the likeliest first.
    """

    start: float
    end: float
    predictions: list[Prediction]


@dataclass(frozen=True)
class RecordingPrediction:
    """What a classifier makes of a whole recording.

    Attributes:
        seconds: length of the recording.
        predictions: every class with its probability, the likeliest first: the mean over the windows.
        windows: what it makes of each window, in the order of time.
    """

    seconds: float
    predictions: list[Prediction]
    windows: list[WindowPrediction]


class AudioClassifier:
    """Names the class of recordings.

    ``classifier("some.wav")`` gives every class with its probability, the likeliest first; a list of recordings gives a
    list of that. A recording is heard whole, whatever its length: one that is longer than what the model hears at once
    (``front_end.crop_seconds``) is cut into windows of that length, whose probabilities are averaged.

    Args:
        model: gives logits.
        front_end: makes the model's inputs of waveforms.
        labels: the classes, in the order of the logits.
    """

    def __init__(self, model: nn.Module, front_end: FrontEnd, labels: Sequence[str]) -> None:
        self.model = model.eval()
        self.front_end = front_end
        self.labels = tuple(labels)

    @classmethod
    def from_pretrained(
        cls, run: str | Path, *, backbone: str | None = None, device: str | torch.device | None = None
    ) -> "AudioClassifier":
        """Load the classifier of a finished run.

        Args:
            run: folder that ``mambavox adapt`` wrote.
            backbone: where the run's backbone lies now, if no longer where ``run.yaml`` says.
            device: where to run; default a GPU if there is one.

        Raises:
            RunError: the folder holds no finished run, or one of its files cannot be read.
            ConfigError: the backbone cannot be found or fetched.
        """
        run = Path(run)
        config = read_run(run, ("classify",), "mambavox predict")
        labels = [str(label) for label in _read_json(run / LABELS_FILE)]
        try:
            crop_seconds = float(_read_json(run / "preprocessor_config.json")["crop_seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{run}/preprocessor_config.json: has no length crop_seconds; it is damaged") from error
        whole = config["method"] == "full"
        loaded = load_backbone(
            str(run) if whole else backbone or config["backbone"],
            labels,
            crop_seconds,
            pooling=config["pooling"],
            position_embeddings="kept" if whole else config["position_embeddings"],
        )
        model: nn.Module = loaded.model if whole else load_adapter(loaded.model, run)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), loaded.front_end, labels)

    @overload
    def __call__(self, audio: AudioSource, *, batch_size: int = ...) -> list[Prediction]: ...

    @overload
    def __call__(self, audio: list[Any], *, batch_size: int = ...) -> list[list[Prediction]]: ...

    def __call__(
        self, audio: AudioSource | list[Any], *, batch_size: int = 32
    ) -> list[Prediction] | list[list[Prediction]]:
        """Classify recordings.

        Args:
            audio: a recording in any form that ``mambavox.data.read_audio`` takes, or a list of them. An array without
                a rate counts as at ``front_end.sampling_rate``.
            batch_size: windows at a time.

        Returns:
            Every class with its probability, the likeliest first; for a list of recordings a list of that.

        Raises:
            AudioError: a recording cannot be read.
        """
        if not isinstance(audio, list):
            return next(self.predict([audio], batch_size=batch_size)).predictions
        return [found.predictions for found in self.predict(audio, batch_size=batch_size)]

    @overload
    def predict(
        self, recordings: Iterable[Any], *, batch_size: int = ..., on_error: Literal["raise"] = ...
    ) -> Iterator[RecordingPrediction]: ...

    @overload
    def predict(
        self, recordings: Iterable[Any], *, batch_size: int = ..., on_error: Literal["return"]
    ) -> Iterator[RecordingPrediction | AudioError]: ...

    def predict(
        self, recordings: Iterable[Any], *, batch_size: int = 32, on_error: Literal["raise", "return"] = "raise"
    ) -> Iterator[RecordingPrediction | AudioError]:
        """Classify recordings of any length, window by window.

        Files are read in blocks; memory grows with the batch, not with their length.

        Args:
            recordings: in any form that ``mambavox.data.read_audio`` takes, or of ``Example``.
            batch_size: windows at a time, of one recording or of several.
            on_error: what to do about a recording that cannot be read: raise the error, or give it in the place of the
                prediction and go on.

        Yields:
            What was found, in the order of the recordings.

        Raises:
            AudioError: a recording cannot be read and ``on_error`` is ``"raise"``.
        """
        pending: deque[_Heard] = deque()
        batch: list[tuple[_Heard, Window]] = []
        for recording in recordings:
            heard = _Heard()
            pending.append(heard)
            try:
                for window in self._windows(recording):
                    batch.append((heard, window))
                    if len(batch) >= batch_size:
                        self._hear(batch)
            except AudioError as error:
                if on_error == "raise":
                    raise
                heard.error = error
                batch = [pair for pair in batch if pair[0] is not heard]
            heard.waiting = sum(pair[0] is heard for pair in batch)
            while pending and not pending[0].waiting:
                yield pending.popleft().result(self.labels)
        if batch:
            self._hear(batch)
        for heard in pending:
            yield heard.result(self.labels)

    def logits(self, examples: Sequence[Example], batch_size: int = 32) -> NDArray[np.float32]:
        """Logits of the beginnings of recordings, as training and its scores hear them.

        Args:
            examples: the recordings, cut at ``front_end.crop_seconds``; their labels are not looked at.
            batch_size: recordings at a time.

        Returns:
            ``(recordings, classes)``.

        Raises:
            AudioError: a recording cannot be read.
        """
        dataset = FeatureDataset(examples, None, self.front_end, max_bytes=0)
        with quiet_transformers():
            return predict_logits(self.model, dataset, batch_size)

    def _windows(self, recording: Any) -> Iterator[Window]:
        source, name = (recording.source, recording.name) if isinstance(recording, Example) else (recording, None)
        return cut_windows(source, self.front_end.max_samples, self.front_end.sampling_rate, name=name)

    def _hear(self, batch: list[tuple["_Heard", Window]]) -> None:
        """Classify a batch of windows, and empty it."""
        features = [self.front_end.features(window.waveform) for _, window in batch]
        with quiet_transformers():
            logits = batch_logits(self.model, self.front_end.collate(features))
        for (heard, window), row in zip(batch, logits.softmax(dim=-1), strict=True):
            heard.times.append((window.start, window.end))
            heard.probabilities.append(row)
            heard.waiting = 0
        batch.clear()


@dataclass(eq=False)
class _Heard:
    """What was heard of a recording so far.

    Attributes:
        times: start and end of each window.
        probabilities: ``(classes,)`` of each window.
        waiting: windows that were read and not yet classified.
        error: why it could not be read.
    """

    times: list[tuple[float, float]] = field(default_factory=list)
    probabilities: list[Tensor] = field(default_factory=list)
    waiting: int = 0
    error: AudioError | None = None

    def result(self, labels: Sequence[str]) -> RecordingPrediction | AudioError:
        if self.error is not None:
            return self.error
        rows = torch.stack(self.probabilities)
        windows = [
            WindowPrediction(start=start, end=end, predictions=_ranked(row, labels))
            for (start, end), row in zip(self.times, rows, strict=True)
        ]
        return RecordingPrediction(self.times[-1][1], _ranked(rows.mean(dim=0), labels), windows)


def _ranked(probabilities: Tensor, labels: Sequence[str]) -> list[Prediction]:
    order = probabilities.argsort(descending=True)
    return [Prediction(label=labels[index], score=float(probabilities[index])) for index in order]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({error}); expected what `mambavox adapt` writes") from error
