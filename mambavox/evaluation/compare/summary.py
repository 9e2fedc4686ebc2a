"""From cells to figures: the chosen learning rates, and each variant's score on each task."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from mambavox.errors import RunError
from mambavox.evaluation.compare.cell import HIGHER_IS_BETTER, Cell, CellResult, CellStore, metric_of
from mambavox.evaluation.compare.grid import Grid, Task, Variant
from mambavox.evaluation.compare.plan import Plan
from mambavox.evaluation.compare.statistics import FoldValues, Interval, bootstrap
from mambavox.runs.config import AdaptConfig

OUR_METHOD = "mambadapter"
"""The method whose variants are no baselines."""


@dataclass(frozen=True)
class RateChoice:
    """How a variant came by its learning rate on a task.

    Attributes:
        tried: each rate and its score on the valid split, ``None`` where the run diverged or failed.
        best: the rate with the best score and, among equals, the lowest loss; ``None`` where every run failed.
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
        metric: of the scores: ``accuracy``, ``wer`` or ``cer``.
        values: one for each seed, 0 to 1: the mean over the folds of the score on the test split.
        interval: mean over the seeds, with its bootstrap interval; ``None`` where a run failed.
        difference: to the reference, paired; ``None`` for the reference itself, or where a run of either failed.
        parameters: trained ones, the head not counted.
        seconds: mean time of a training.
        failures: why runs gave no figures.
    """

    variant: str
    task: str
    rate: RateChoice
    metric: str = "accuracy"
    values: tuple[float, ...] = ()
    interval: Interval | None = None
    difference: Interval | None = None
    parameters: int | None = None
    seconds: float | None = None
    failures: tuple[str, ...] = ()

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; ``None`` with one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "deviation": self.deviation, "verdict": self.verdict}

    @property
    def verdict(self) -> str | None:
        """What the difference to the reference says; ``None`` where there is none."""
        if self.difference is None:
            return None
        return self.difference.verdict(higher_is_better=HIGHER_IS_BETTER[self.metric])


@dataclass(frozen=True)
class Summary:
    """The figures of a grid.

    Attributes:
        grid: what was compared.
        scores: of each task and variant.
        references: name of the variant that the others were compared with, for each task.
        notes: how the splits of each task came about.
        devices: what was trained on.
        optimistic: tasks whose epochs were chosen on the split that is reported.
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

    @property
    def metrics(self) -> list[str]:
        """The metrics of the tasks, each once."""
        return list(dict.fromkeys(self.metric(task) for task in self.grid.tasks))

    def metric(self, task: Task) -> str:
        """The metric of a task."""
        return self.score(task, self.grid.variants[0]).metric

    def mean(self, variant: Variant) -> float | None:
        """Mean score over the tasks; ``None`` where one has no figure, or their metrics differ."""
        if len(self.metrics) > 1:
            return None
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
        task: chosen on its valid split.
        variant: chosen for.
    """
    rates = plan.grid.rates(variant, task)
    if len(rates) == 1:
        return RateChoice(((rates[0], None),), rates[0], None, given=True)
    quality: dict[float, tuple[float, float]] = {}
    scores: dict[float, float] = {}
    for cell, rate in zip(plan.search_cells(task, variant), rates, strict=True):
        result = store.read(cell)
        if result is not None and result.metric in result.valid:
            score = result.valid[result.metric]
            scores[rate] = score
            better = score if HIGHER_IS_BETTER[result.metric] else -score
            quality[rate] = (better, -result.valid.get("loss", float("inf")))
    tried = tuple((rate, scores.get(rate)) for rate in rates)
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
        folds: dict[str, list[FoldValues]] = {}
        tested: set[tuple[str, ...]] = set()
        seen: list[str] = []
        for variant in plan.grid.variants:
            rate = choose_rate(plan, store, task, variant)
            cells = [] if rate.best is None else plan.final_cells(task, variant, rate.best)
            results = [store.read(cell) for cell in cells]
            good = [result for result in results if result is not None and result.diverged is None]
            failures = _failures(plan, store, task, variant, cells, results)
            scores[task.name, variant.name] = Score(
                variant.name,
                task.name,
                rate,
                metric=metric_of(plan.grid.config(variant, task, 0, 1.0)),
                parameters=next((result.parameters["adapter"] for result in good if result.parameters), None),
                seconds=statistics.mean(result.seconds for result in good) if good else None,
                failures=failures,
            )
            seen += [note for result in good for note in result.notes]
            devices |= {result.device for result in good}
            if task.name not in optimistic and any(result.selects_on_test for result in good):
                optimistic.append(task.name)
            if not failures:
                folds[variant.name] = _by_fold(good, len(plan.folds[task.name]))
                tested.add(tuple(result.tested_on for result in good[: len(plan.folds[task.name])]))
        if len(tested) > 1:
            raise RunError(
                f"task {task.name}: its cells were tested on different recordings; remove them from "
                f"{store.folder}/cells and run the comparison again"
            )
        references[task.name] = reference = _reference(plan.grid, folds, plan.grid.config(variant, task, 0, 1.0))
        for name, own in folds.items():
            difference = None
            if reference is not None and name != reference:
                pairs = zip(own, folds[reference], strict=True)
                difference = bootstrap([FoldValues(mine.values - theirs.values, mine.counts) for mine, theirs in pairs])
            scores[task.name, name] = _with_figures(scores[task.name, name], own, difference)
        notes[task.name] = tuple(dict.fromkeys(seen))
    return Summary(plan.grid, scores, references, notes, tuple(sorted(devices)), tuple(optimistic))


def _by_fold(results: Sequence[CellResult], num_folds: int) -> list[FoldValues]:
    """For each fold what its scores are made of. The cells come seed by seed."""
    found = []
    for fold in range(num_folds):
        measures = [result.measure for result in results[fold::num_folds]]
        found.append(
            FoldValues(np.array([measure.values for measure in measures]), np.array(measures[0].counts, dtype=float))
        )
    return found


def _with_figures(score: Score, folds: Sequence[FoldValues], difference: Interval | None) -> Score:
    by_seed = np.mean([fold.by_seed for fold in folds], axis=0)
    return replace(score, values=tuple(by_seed.tolist()), interval=bootstrap(folds), difference=difference)


def _reference(grid: Grid, folds: Mapping[str, Sequence[FoldValues]], config: AdaptConfig) -> str | None:
    """Name of the variant that the others of a task are compared with."""
    if grid.reference is not None:
        return grid.reference if grid.reference in folds else None
    sign = 1 if HIGHER_IS_BETTER[metric_of(config)] else -1
    means = {name: sign * float(np.mean([fold.by_seed.mean() for fold in own])) for name, own in folds.items()}
    baselines = [
        variant.name for variant in grid.variants if not variant.method.startswith(OUR_METHOD) and variant.name in means
    ]
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
        reasons = {_reason(store, cell, store.read(cell)) for cell in searched}
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
