"""From cells to figures: the chosen learning rates, and each variant's score on each task."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mambavox.errors import RunError
from mambavox.evaluation.compare.cell import Cell, CellResult, CellStore
from mambavox.evaluation.compare.grid import Grid, Task, Variant
from mambavox.evaluation.compare.plan import Plan
from mambavox.evaluation.compare.statistics import Interval, bootstrap

OUR_METHOD = "mambadapter"
"""The method whose variants are no baselines."""


@dataclass(frozen=True)
class RateChoice:
    """How a variant came by its learning rate on a task.

    Attributes:
        tried: each rate and its accuracy on the valid part, ``None`` where the run diverged or failed.
        best: the rate with the highest accuracy and, among equals, the lowest loss; ``None`` where every run failed.
        edge: the end of the grid at which the best rate lies, if it does: a rate beyond it may be better.
        given: there was one rate only, and nothing was chosen.
    """

    tried: tuple[tuple[float, float | None], ...]
    best: float | None
    edge: Literal["lowest", "highest"] | None
    given: bool


@dataclass(frozen=True)
class Score:
    """What a variant reached on a task.

    Attributes:
        variant: name of the variant.
        task: name of the task.
        rate: how its learning rate was chosen.
        accuracies: one for each seed, 0 to 1: the mean over the folds of the accuracy on the test part.
        interval: mean over the seeds, with its bootstrap interval; ``None`` where a run failed.
        difference: to the reference, paired; ``None`` for the reference itself, or where a run of either failed.
        parameters: trained ones, the head not counted.
        seconds: mean time of a training.
        failures: why runs gave no figures.
    """

    variant: str
    task: str
    rate: RateChoice
    accuracies: tuple[float, ...] = ()
    interval: Interval | None = None
    difference: Interval | None = None
    parameters: int | None = None
    seconds: float | None = None
    failures: tuple[str, ...] = ()

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; ``None`` with one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        verdict = self.difference.verdict if self.difference else None
        return {**asdict(self), "deviation": self.deviation, "verdict": verdict}


@dataclass(frozen=True)
class Summary:
    """The figures of a grid.

    Attributes:
        grid: what was compared.
        scores: of each task and variant.
        references: name of the variant that the others were compared with, for each task.
        notes: how the parts of each task came about.
        devices: what was trained on.
        optimistic: tasks whose epochs were chosen on the part that is reported.
    """

    grid: Grid
    scores: Mapping[tuple[str, str], Score]
    references: Mapping[str, str | None]
    notes: Mapping[str, tuple[str, ...]]
    devices: tuple[str, ...]
    optimistic: tuple[str, ...]

    @property
    def failures(self) -> list[str]:
        """A sentence for each run without figures."""
        return [
            f"{score.task}, {score.variant}: {failure}" for score in self.scores.values() for failure in score.failures
        ]

    def score(self, task: Task, variant: Variant) -> Score:
        """What a variant reached on a task."""
        return self.scores[task.name, variant.name]

    def parameters(self, variant: Variant) -> list[int]:
        """Trained parameters of a variant, the head not counted; more than one figure where tasks differ in length."""
        counts = {self.score(task, variant).parameters for task in self.grid.tasks}
        return sorted(count for count in counts if count is not None)

    def mean(self, variant: Variant) -> float | None:
        """Mean accuracy over the tasks; ``None`` where one has no figure."""
        intervals = [self.score(task, variant).interval for task in self.grid.tasks]
        values = [interval.value for interval in intervals if interval is not None]
        return statistics.mean(values) if len(values) == len(intervals) else None

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "grid": asdict(self.grid),
            "references": dict(self.references),
            "notes": {task: list(notes) for task, notes in self.notes.items()},
            "devices": list(self.devices),
            "optimistic": list(self.optimistic),
            "scores": [score.to_mapping() for score in self.scores.values()],
        }


def choose_rate(plan: Plan, store: CellStore, task: Task, variant: Variant) -> RateChoice:
    """Choose a variant's learning rate by the runs that tried them.

    Args:
        plan: of the grid.
        store: of the results.
        task: chosen on its valid part.
        variant: chosen for.
    """
    rates = plan.grid.rates(variant)
    if len(rates) == 1:
        return RateChoice(((rates[0], None),), rates[0], None, given=True)
    quality: dict[float, tuple[float, float]] = {}
    for cell, rate in zip(plan.search_cells(task, variant), rates, strict=True):
        result = store.read(cell.key)
        if result is not None and result.valid_accuracy is not None:
            loss = float("inf") if result.valid_loss is None else result.valid_loss
            quality[rate] = (result.valid_accuracy, -loss)
    tried = tuple((rate, quality[rate][0] if rate in quality else None) for rate in rates)
    best = max(quality, key=lambda rate: quality[rate], default=None)
    edge: Literal["lowest", "highest"] | None = None
    if best in (rates[0], rates[-1]):
        edge = "lowest" if best == rates[0] else "highest"
    return RateChoice(tried, best, edge, given=False)


def summarise(plan: Plan, store: CellStore) -> Summary:
    """The figures of a grid whose cells have been run.

    Args:
        plan: of the grid.
        store: of the results.

    Raises:
        RunError: two variants were tested on different recordings, or a result is damaged.
    """
    scores: dict[tuple[str, str], Score] = {}
    references: dict[str, str | None] = {}
    notes, devices, optimistic = {}, set(), []
    for task in plan.grid.tasks:
        correct: dict[str, list[NDArray[np.float64]]] = {}
        tested: set[tuple[str, ...]] = set()
        seen: list[str] = []
        for variant in plan.grid.variants:
            rate = choose_rate(plan, store, task, variant)
            cells = [] if rate.best is None else plan.final_cells(task, variant, rate.best)
            results = [store.read(cell.key) for cell in cells]
            good = [result for result in results if result is not None and result.diverged is None]
            failures = _failures(plan, store, task, variant, cells, results)
            scores[task.name, variant.name] = Score(
                variant.name,
                task.name,
                rate,
                parameters=next((result.parameters["adapter"] for result in good if result.parameters), None),
                seconds=statistics.mean(result.seconds for result in good) if good else None,
                failures=failures,
            )
            seen += [note for result in good for note in result.notes]
            devices |= {result.device for result in good}
            if task.name not in optimistic and any(result.selects_on_test for result in good):
                optimistic.append(task.name)
            if not failures:
                correct[variant.name] = _by_fold(good, len(plan.folds[task.name]))
                tested.add(tuple(result.recordings for result in good[: len(plan.folds[task.name])]))
        if len(tested) > 1:
            raise RunError(
                f"task {task.name}: its cells were tested on different recordings; remove them from "
                f"{store.folder}/cells and run the comparison again"
            )
        references[task.name] = reference = _reference(plan.grid, correct)
        for name, folds in correct.items():
            difference = None
            if reference is not None and name != reference:
                difference = bootstrap([own - other for own, other in zip(folds, correct[reference], strict=True)])
            scores[task.name, name] = _with_figures(scores[task.name, name], folds, difference)
        notes[task.name] = tuple(dict.fromkeys(seen))
    return Summary(plan.grid, scores, references, notes, tuple(sorted(devices)), tuple(optimistic))


def _by_fold(results: Sequence[CellResult], num_folds: int) -> list[NDArray[np.float64]]:
    """For each fold ``(seeds, recordings)``, 1 where the class was recognised. The cells come seed by seed."""
    return [
        np.array([result.correct for result in results[fold::num_folds]], dtype=np.float64) for fold in range(num_folds)
    ]


def _with_figures(score: Score, folds: Sequence[NDArray[np.float64]], difference: Interval | None) -> Score:
    by_seed = np.mean([fold.mean(axis=1) for fold in folds], axis=0)
    return Score(
        score.variant,
        score.task,
        score.rate,
        accuracies=tuple(by_seed.tolist()),
        interval=bootstrap(folds),
        difference=difference,
        parameters=score.parameters,
        seconds=score.seconds,
    )


def _reference(grid: Grid, correct: Mapping[str, Sequence[NDArray[np.float64]]]) -> str | None:
    """Name of the variant that the others of a task are compared with."""
    if grid.reference is not None:
        return grid.reference if grid.reference in correct else None
    means = {name: float(np.mean([fold.mean() for fold in folds])) for name, folds in correct.items()}
    baselines = [variant.name for variant in grid.variants if variant.method != OUR_METHOD and variant.name in means]
    return max(baselines, key=lambda name: means[name], default=None)


def _failures(
    plan: Plan,
    store: CellStore,
    task: Task,
    variant: Variant,
    cells: Sequence[Cell],
    results: Sequence[CellResult | None],
) -> tuple[str, ...]:
    if not cells:
        searched = plan.search_cells(task, variant)
        reasons = {_reason(store, cell, store.read(cell.key)) for cell in searched}
        return (f"every learning rate failed: {'; '.join(sorted(reasons))}",)
    return tuple(
        f"{f'fold {cell.fold}, ' if cell.fold else ''}seed {cell.config.seed}: {_reason(store, cell, result)}"
        for cell, result in zip(cells, results, strict=True)
        if result is None or result.diverged
    )


def _reason(store: CellStore, cell: Cell, result: CellResult | None) -> str:
    if result is not None and result.diverged:
        return result.diverged
    return (store.failure(cell.key) or "was not run").splitlines()[-1]
