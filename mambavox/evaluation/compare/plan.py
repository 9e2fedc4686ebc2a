"""The cells of a grid: those that choose the learning rates, and those that the tables are made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console

from mambavox.data import read_examples
from mambavox.data.splits import drop_splits
from mambavox.errors import ConfigError, DataError
from mambavox.evaluation.compare.cell import Cell
from mambavox.evaluation.compare.fingerprint import backbone_fingerprint, data_fingerprint
from mambavox.evaluation.compare.folds import Fold, find_folds
from mambavox.evaluation.compare.grid import Grid, Task, Variant
from mambavox.runs.config import AdaptConfig, TranscriptConfig
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.classify.data import load_labelled
from mambavox.training.splits import RunData
from mambavox.training.transcripts import load_transcripts


@dataclass(frozen=True)
class Plan:
    """A grid, and what its cells need to know about data and backbone.

    Attributes:
        grid: what is compared.
        folds: of each task, tested in turn.
        data_fingerprints: of each task.
        backbone_fingerprints: of each task's backbone.
    """

    grid: Grid
    folds: Mapping[str, tuple[Fold, ...]]
    data_fingerprints: Mapping[str, str]
    backbone_fingerprints: Mapping[str, str]

    def pairs(self) -> Iterator[tuple[Task, Variant]]:
        """Every task with every variant."""
        return ((task, variant) for task in self.grid.tasks for variant in self.grid.variants)

    def search_cells(self, task: Task, variant: Variant) -> list[Cell]:
        """The cells that choose a variant's learning rate on a task: each rate, with the first seed and fold.

        None where there is one rate only.
        """
        rates = self.grid.rates(variant, task)
        if len(rates) == 1:
            return []
        return [self._cell(task, variant, self.folds[task.name][0], self.grid.seeds[0], rate) for rate in rates]

    def final_cells(self, task: Task, variant: Variant, learning_rate: float) -> list[Cell]:
        """The cells that are reported: each seed on each fold."""
        return [
            self._cell(task, variant, fold, seed, learning_rate)
            for seed in self.grid.seeds
            for fold in self.folds[task.name]
        ]

    def _cell(self, task: Task, variant: Variant, fold: Fold, seed: int, learning_rate: float) -> Cell:
        config = self.grid.config(variant, task, seed, learning_rate).replace(**fold.settings)
        return Cell(
            task.name,
            fold.name,
            config,
            self.data_fingerprints[task.name],
            self.backbone_fingerprints[task.name],
        )


def make_plan(grid: Grid, console: Console | None = None) -> Plan:
    """Read the data of a grid's tasks, once, and see to it that the cells can be begun.

    Args:
        grid: what is compared.
        console: where progress goes.

    Raises:
        ConfigError: there is no task, the backbone cannot be found, or a task has no valid split to choose rates on.
        DataError: a task's data cannot be read or divided, or have no test split.
        AudioError: recordings cannot be used.
    """
    if not grid.tasks:
        raise ConfigError("no task to compare on; expected its name and data, such as --task esc10=/data/esc10")
    folds, fingerprints, backbones = {}, {}, {}
    for task in grid.tasks:
        config = grid.config(grid.variants[0], task, grid.seeds[0], 1.0)
        label_column = config.label_column if isinstance(config, ClassifyConfig) else None
        found = read_examples(task.data, label_column=label_column, audio_column=config.audio_column)
        columns = [config.split_column] if config.split_column else ["subset", "split"]
        examples, _ = drop_splits(found, config.drop_splits, columns)
        folds[task.name] = find_folds(examples, config, task.folds)
        data = _read(config.replace(**folds[task.name][0].settings), console)
        tests = [name for name, split in data.splits.items() if name not in ("train", "valid") and len(split)]
        if not tests:
            raise DataError(f"task {task.name}: has no test split to compare on; ask for one with test_fraction=0.2")
        if len(tests) > 1:
            raise ConfigError(
                f"task {task.name}: has {len(tests)} test splits ({', '.join(tests)}); choose the one to compare on "
                f"with test_split={tests[0]}"
            )
        searching = any(len(grid.rates(variant, task)) > 1 for variant in grid.variants)
        if searching and not len(data.splits["valid"]):
            raise ConfigError(
                f"task {task.name}: has no valid split to choose learning rates on; ask for one with "
                "valid_fraction=0.1, or give one rate: --learning-rates x1"
            )
        fingerprints[task.name] = data_fingerprint(examples, task.data)
        backbones[task.name] = backbone_fingerprint(grid.backbone_of(task))
    return Plan(grid, folds, fingerprints, backbones)


def _read(config: AdaptConfig, console: Console | None) -> RunData:
    if isinstance(config, ClassifyConfig):
        return load_labelled(config, console)
    assert isinstance(config, TranscriptConfig)
    return load_transcripts(config, console)
