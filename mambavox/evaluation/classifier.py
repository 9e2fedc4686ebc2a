"""The classifier that a run saved."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mambavox.data import AudioSource, Example, read_audio
from mambavox.errors import RunError
from mambavox.hub import load_adapter, quiet_transformers
from mambavox.runs.folder import LABELS_FILE, read_run
from mambavox.training.classify.backbone import load_backbone
from mambavox.training.classify.objective import predict_logits
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


class AudioClassifier:
    """Names the class of recordings.

    ``classifier("some.wav")`` gives every class with its probability, the likeliest first; a list of recordings gives a
    list of that.

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
            batch_size: recordings at a time.

        Returns:
            Every class with its probability, the likeliest first; for a list of recordings a list of that.

        Raises:
            AudioError: a recording cannot be read.
        """
        if not isinstance(audio, list):
            return self._predict([audio], batch_size)[0]
        return self._predict(audio, batch_size)

    def logits(self, examples: Sequence[Example], batch_size: int = 32) -> NDArray[np.float32]:
        """Logits of recordings.

        Args:
            examples: the recordings; their labels are not looked at.
            batch_size: recordings at a time.

        Returns:
            ``(recordings, classes)``.

        Raises:
            AudioError: a recording cannot be read.
        """
        dataset = FeatureDataset(examples, None, self.front_end, max_bytes=0)
        with quiet_transformers():
            return predict_logits(self.model, dataset, batch_size)

    def _predict(self, sources: Sequence[AudioSource], batch_size: int) -> list[list[Prediction]]:
        if not sources:
            return []
        logits = torch.from_numpy(self.logits([self._example(source) for source in sources], batch_size))
        return [
            [Prediction(label=self.labels[index], score=float(row[index])) for index in row.argsort(descending=True)]
            for row in logits.softmax(dim=-1)
        ]

    def _example(self, source: AudioSource) -> Example:
        if isinstance(source, str | Path):
            return Example(Path(source).expanduser())
        if isinstance(source, Mapping | np.ndarray):
            return Example((read_audio(source, self.front_end.sampling_rate), self.front_end.sampling_rate))
        return Example(source)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({error}); expected what `mambavox adapt` writes") from error
