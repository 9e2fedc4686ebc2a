"""The figures of a comparison as pictures."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mambavox.evaluation.compare.grid import Variant
from mambavox.evaluation.compare.summary import Score, Summary
from mambavox.evaluation.compare.tables import LABELS
from mambavox.plotting import Style, add_legend, plain_log_axis, save, style_axes, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_OF_A_MAP = 2


def write_plots(summary: Summary, folder: Path) -> list[Path]:
    """Draw what the grid has figures for.

    Args:
        summary: of the grid.
        folder: of the pictures.

    Returns:
        The pictures: bars; score against parameters; a heat map for each pair of options that varies.
    """
    written = [plot_bars(summary, folder / "scores.png")]
    if any(score.parameters for score in summary.scores.values()):
        written.append(plot_parameters(summary, folder / "scores_parameters.png"))
    planes = option_planes(summary.grid.variants) if len(summary.metrics) == 1 else []
    for rows, columns in planes:
        written.append(plot_heat_map(summary, rows, columns, folder / f"scores_{rows}_{columns}.png"))
    return written


def plot_bars(summary: Summary, path: Path) -> Path:
    """Bars of the mean test score with the standard deviation over seeds; a failed variant has none.

    Args:
        summary: of the grid.
        path: the picture; its ending says the format.

    Returns:
        The picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    grid = summary.grid
    bars = len(grid.tasks) * len(grid.variants)
    figure = Figure(figsize=(6 + 0.3 * bars, max(4.0, 0.25 * len(grid.variants))), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(grid.variants)
    looks = _styles({variant.name: variant.method for variant in grid.variants})
    for number, variant in enumerate(grid.variants):
        scores = [(place, summary.score(task, variant)) for place, task in enumerate(grid.tasks)]
        drawn = [(place, score) for place, score in scores if score.interval is not None]
        axes.bar(
            [place + (number + 0.5) * width - 0.4 for place, _ in drawn],
            [_value(score) for _, score in drawn],
            width,
            yerr=[score.deviation or 0.0 for _, score in drawn],
            capsize=2,
            color=looks[variant.name].color,
            hatch=looks[variant.name].hatch,
            edgecolor="white",
            label=variant.name,
        )
    axes.set_xticks(range(len(grid.tasks)), [task.name for task in grid.tasks])
    axes.set(ylabel=_label(summary.metrics), title=f"{grid.name}: mean and deviation over the seeds")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    style_axes(axes)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", frameon=False)
    return save(figure, path)


def plot_parameters(summary: Summary, path: Path) -> Path:
    """Mean test score against trained parameters, a panel a task; variants of one line are joined.

    Args:
        summary: of the grid.
        path: the picture.

    Returns:
        The picture.

    Source:
        MambAdapter (arXiv 2606.15638), figure 2.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    grid = summary.grid
    figure = Figure(figsize=(5 * len(grid.tasks), 4.5), layout="constrained")
    panels = figure.subplots(1, len(grid.tasks), squeeze=False)[0]
    lines = list(dict.fromkeys(variant.line or variant.name for variant in grid.variants))
    looks = _styles({variant.line or variant.name: variant.method for variant in grid.variants})
    for task, axes in zip(grid.tasks, panels, strict=True):
        for line in lines:
            of_line = [variant for variant in grid.variants if (variant.line or variant.name) == line]
            scores = [score for variant in of_line if (score := summary.score(task, variant)).interval]
            _draw_line(axes, scores, line, looks[line])
        axes.set_xscale("log")
        axes.margins(x=0.12, y=0.1)
        axes.autoscale_view()
        plain_log_axis(axes.xaxis)
        axes.set(xlabel="trained parameters, head not counted", ylabel=_label([summary.metric(task)]), title=task.name)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        style_axes(axes)
    add_legend(figure, columns=5)
    return save(figure, path)


def _styles(methods: Mapping[str, str]) -> dict[str, Style]:
    """How lines and bars are drawn, by their labels; whatever these are, it is the method that has the colour."""
    keys = {label: f"{method} {label}" for label, method in methods.items()}
    looks = styles(list(keys.values()))
    return {label: looks[key] for label, key in keys.items()}


def _draw_line(axes: "Axes", scores: Sequence[Score], label: str, style: Style) -> None:
    """Variants that belong together, by their parameters; what trains nothing but the head is a level."""
    drawn = sorted((score for score in scores if score.parameters), key=lambda score: score.parameters or 0)
    for score in scores:
        if not score.parameters:
            # A logarithmic axis has no place for it.
            axes.axhline(_value(score), color=style.color, linestyle=(0, (5, 3)), label=f"{label} (the head alone)")
    if drawn:
        axes.errorbar(
            [score.parameters or 0 for score in drawn],
            [_value(score) for score in drawn],
            yerr=[score.deviation or 0.0 for score in drawn],
            color=style.color,
            marker=style.marker,
            linestyle=style.line,
            markersize=7,
            capsize=3,
            label=label,
        )


def option_planes(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """Pairs of options whose values are crossed in a grid: every combination of at least two values each occurs.

    Args:
        variants: of the grid.
    """
    options = list(dict.fromkeys(key for variant in variants for key in variant.options))
    return [(rows, columns) for rows, columns in combinations(options, 2) if _plane(variants, rows, columns)]


def plot_heat_map(summary: Summary, rows: str, columns: str, path: Path) -> Path:
    """Mean test score over all tasks for each combination of two options.

    Args:
        summary: of the grid.
        rows: name of one option.
        columns: name of the other.
        path: the picture.

    Returns:
        The picture.

    Source:
        MambAdapter (arXiv 2606.15638), figure 3.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    plane = _plane(summary.grid.variants, rows, columns)
    down, across = (sorted({key[axis] for key in plane}) for axis in (0, 1))
    means = [[summary.mean(plane[row, column]) for column in across] for row in down]
    values = np.array([[np.nan if mean is None else mean for mean in line] for line in means])
    figure = Figure(figsize=(2.5 + 0.9 * len(across), 2 + 0.6 * len(down)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "failed" if np.isnan(value) else f"{100 * value:.1f}"
        dark = np.isnan(value) or value < np.nanmean(values)
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(across)), [str(value) for value in across])
    axes.set_yticks(range(len(down)), [str(value) for value in down])
    axes.set(xlabel=columns, ylabel=rows, title=f"{_label(summary.metrics)}, mean over the tasks")
    figure.colorbar(image, ax=axes, format=PercentFormatter(xmax=1))
    return save(figure, path)


def _plane(variants: Sequence[Variant], rows: str, columns: str) -> Mapping[tuple[Any, Any], Variant]:
    """The variants by the values of two options that differ in nothing else; empty where they are not crossed."""
    planes: dict[Any, dict[tuple[Any, Any], Variant]] = {}
    for variant in variants:
        if rows in variant.options and columns in variant.options:
            rest = {key: value for key, value in variant.options.items() if key not in (rows, columns)}
            plane = planes.setdefault((variant.method, str(sorted(rest.items()))), {})
            plane[variant.options[rows], variant.options[columns]] = variant
    largest = max(planes.values(), key=len, default={})
    sizes = [len({key[axis] for key in largest}) for axis in (0, 1)]
    crossed = min(sizes) >= _LEAST_OF_A_MAP and len(largest) == sizes[0] * sizes[1]
    return largest if crossed else {}


def _label(metrics: Sequence[str]) -> str:
    return "test " + " or ".join(LABELS[metric] for metric in metrics)


def _value(score: Score) -> float:
    return 0.0 if score.interval is None else score.interval.value
