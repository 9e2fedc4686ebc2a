"""One cell of a grid: what it is, what it gave, and where that is kept."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from mambavox import __version__
from mambavox.errors import RunError
from mambavox.files import to_json, write_atomically
from mambavox.runs.config import TASK_KEY, AdaptConfig, RunConfig
from mambavox.training.configs import config_class

# Where things lie, and how they are loaded, changes no result.
_INDIFFERENT = ("data", "output", "backbone", "num_workers", "tensorboard", "plots")
_NAME_LENGTH = 120
_NO_DEFAULT = object()


@dataclass(frozen=True)
class Cell:
    """One training run of a grid.

    Attributes:
        task: name of the task.
        fold: name of the fold that is tested, if the task has several.
        config: the whole configuration, but for the output folder.
        data_fingerprint: of the recordings.
        backbone_fingerprint: of the backbone's files.
    """

    task: str
    fold: str | None
    config: AdaptConfig
    data_fingerprint: str
    backbone_fingerprint: str

    @property
    def key(self) -> str:
        """Readable name and a hash of everything that determines the result.

        Settings at their defaults are left out of it, so that a setting that is added later loses no finished cell.
        """
        config = self.config
        defaults = type(config)().to_mapping()
        facts = {
            "config": {key: value for key, value in self.settings.items() if value != defaults.get(key, _NO_DEFAULT)},
            "data": self.data_fingerprint,
            "backbone": self.backbone_fingerprint,
            "version": __version__,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        words = [self.task, config.method, *(f"{key}={value}" for key, value in config.method_options.items())]
        words += [
            f"lr{config.peak_learning_rate:g}",
            *([] if self.fold is None else [f"fold{self.fold}"]),
            f"seed{config.seed}",
        ]
        return f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', '-'.join(words))[:_NAME_LENGTH]}-{digest[:16]}"

    @property
    def settings(self) -> dict[str, Any]:
        """The flat keys of the configuration that can change the result."""
        return {key: value for key, value in self.config.to_mapping().items() if key not in _INDIFFERENT}

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "config": self.config.to_mapping()}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Cell":
        """The cell that ``to_mapping`` described."""
        kind = config_class(str(mapping["config"][TASK_KEY]))
        return cls(**{**mapping, "config": kind.from_mapping(mapping["config"], "the cell")})


class Measure(NamedTuple):
    """What a score is made of: it is the sum of the values over the sum of the counts.

    Attributes:
        values: of each test recording: 1 where its class was recognised, or its errors.
        counts: of each test recording: 1, or its words or characters.
    """

    values: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def score(self) -> float:
        """Over all recordings."""
        return sum(self.values) / max(sum(self.counts), 1)


def metric_of(config: RunConfig) -> str:
    """By which runs are compared: classifiers by accuracy, recognisers by the error rate that chooses their epoch.

    Where the loss chooses the epoch it is the word error rate.
    """
    if config.task == "classify":
        return "accuracy"
    return "cer" if getattr(config, "metric_for_best_model", "wer") == "cer" else "wer"


HIGHER_IS_BETTER = {"accuracy": True, "wer": False, "cer": False}
"""By the name of the metric."""


@dataclass(frozen=True)
class CellResult:
    """What a cell gave.

    Attributes:
        key: of the cell.
        task: name of the task.
        config: flat keys of the run's configuration.
        metric: by which the cell is compared: ``accuracy``, ``wer`` or ``cer``.
        diverged: why there are no figures: the loss was no number any more. A run that diverged would do so again.
        valid: figures of the epoch that was kept on the valid split, by metric, with ``loss``; may be empty.
        tested_on: hash of the names and targets of the test split, in order; equal hashes can be compared in pairs.
        measures: what the test scores are made of, by metric.
        selects_on_test: the epoch was chosen on the test split, which makes its figures optimistic.
        parameters: trainable ones, as ``trainable_parameters`` counts them.
        recordings: recordings of each split.
        seconds: of the training.
        notes: how the splits came about.
        device: where it was trained.
        versions: of the libraries.
    """

    key: str
    task: str
    config: Mapping[str, Any]
    metric: str = "accuracy"
    diverged: str | None = None
    valid: Mapping[str, float] = field(default_factory=dict)
    tested_on: str = ""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    selects_on_test: bool = False
    parameters: Mapping[str, Any] | None = None
    recordings: Mapping[str, int] | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    device: str = ""
    versions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(self.notes))
        measures = {name: Measure(*map(tuple, measure)) for name, measure in self.measures.items()}
        object.__setattr__(self, "measures", measures)

    @property
    def measure(self) -> Measure:
        """What the compared score is made of."""
        return self.measures[self.metric]


class CellStore:
    """The folder of a grid's results: a file a cell, written at once and checked when it is read.

    ``cells/`` holds results, ``failures/`` the errors of cells that are to be tried again, ``work/`` the run folders
    of cells that are under way.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """File of a cell's result."""
        return self.folder / "cells" / f"{key}.json"

    def work(self, key: str) -> Path:
        """Run folder of a cell that is under way."""
        return self.folder / "work" / key

    def read(self, cell: Cell) -> CellResult | None:
        """A cell's result; ``None`` where there is none yet.

        Raises:
            RunError: the file is cut off, was changed, or holds something else; or a default was another then.
        """
        path = self.path(cell.key)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["checksum"] != _checksum(content["result"]):
                raise ValueError("its checksum is another")
            result = CellResult(**content["result"])
            if result.key != cell.key:
                raise ValueError(f"it is the result of {result.key}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{path}: is damaged ({error}); the cell is computed again") from error
        for key, value in json.loads(json.dumps(cell.settings)).items():
            if result.config.get(key, value) != value:
                raise RunError(f"{path}: was computed with {key}={result.config[key]}; the cell is computed again")
        return result

    def write(self, result: CellResult) -> None:
        """Keep a cell's result, and forget that it ever failed."""
        content = {spec.name: getattr(result, spec.name) for spec in fields(result)}
        content = json.loads(json.dumps(content))
        self._write(self.path(result.key), json.dumps({"checksum": _checksum(content), "result": content}) + "\n")
        self._failure_path(result.key).unlink(missing_ok=True)

    def write_failure(self, key: str, error: str) -> None:
        """Keep the error of a cell that is to be tried again."""
        self._write(self._failure_path(key), to_json({"key": key, "error": error}))

    def failure(self, key: str) -> str | None:
        """The error of a cell's last attempt, if it failed."""
        try:
            return str(json.loads(self._failure_path(key).read_text(encoding="utf-8"))["error"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return f"it failed, and the record of why is damaged ({error})"

    def _failure_path(self, key: str) -> Path:
        return self.folder / "failures" / f"{key}.json"

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
