"""Methods side by side: a table for the terminal, a plot, JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from mambavox.data import SAMPLING_RATE, Waveform
from mambavox.files import to_json, write_atomically
from mambavox.plotting import INK, Style, add_inner_legend, plain, save, style_axes, styles
from mambavox.runs.plots import draw_confusion
from mambavox.runs.result import RunResult, describe_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def headline(result: RunResult) -> tuple[str, Mapping[str, Any]]:
    """The split that a result is reported on, test where there is one, and its figures.

    Args:
        result: of a run that held a split back.
    """
    split = "test" if "test" in result.scores else "valid"
    return split, result.scores[split]


def comparison_table(results: Mapping[str, RunResult]) -> Table:
    """Table of methods: trainable parameters, share of the backbone, accuracy with its interval, seconds.

    Args:
        results: of the runs on one task, by name.
    """
    split = "/".join(sorted({result.describe_split(headline(result)[0]) for result in results.values()}))
    heads = sorted({result.parameters["head"] for result in results.values()})
    table = Table(
        header_style="bold",
        caption=f"trainable: the head's {' or '.join(f'{head:,}' for head in heads)} included; backbone share: without",
    )
    for column in ("method", "trainable", "of backbone", f"{split} accuracy [95 %]", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for name, result in results.items():
        table.add_row(
            name,
            f"{result.parameters['total']:,}",
            f"{result.parameters['share_of_backbone']:.2%}",
            describe_accuracy(headline(result)[1]),
            f"{result.seconds:.1f}",
        )
    return table


def write_results(results: Mapping[str, RunResult], path: Path, **facts: Any) -> None:
    """Write the figures of several runs as JSON.

    Args:
        results: of the runs, by name.
        path: the file.
        facts: what else it should say, at the top.
    """
    methods = {name: result.to_mapping() for name, result in results.items()}
    write_atomically(path, to_json({**facts, "methods": methods}))


@dataclass(frozen=True)
class HeardExample:
    """A recording and what a classifier made of it.

    Attributes:
        waveform: ``(samples,)`` at ``SAMPLING_RATE``.
        label: its class.
        probabilities: of the classes, the likeliest first.
    """

    waveform: Waveform
    label: str
    probabilities: Sequence[tuple[str, float]]


def plot_comparison(
    results: Mapping[str, RunResult],
    path: Path,
    title: str,
    *,
    shown: str,
    confusion: NDArray[np.int64],
    example: HeardExample,
) -> Path:
    """Draw scores with their intervals, learning curves, one method's confusions, and what it hears in a recording.

    Args:
        results: of the runs on one task, by name of the method.
        path: the file; its ending says the format.
        title: above the plots.
        shown: the method whose confusions and recording are drawn.
        confusion: of that method: recordings of the row's class that were taken for the column's.
        example: heard by that method.
    """
    from matplotlib.figure import Figure

    looks = styles(list(results))
    high = max(3.6, 1.2 + 0.32 * len(results))
    figure: Any = Figure(figsize=(14, high + 6.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    figure.suptitle(title, fontsize=14, fontweight="bold")
    above, below = figure.subfigures(2, 1, height_ratios=[high, 5.8])
    forest, curves = above.subplots(1, 2, width_ratios=[5, 4])
    _draw_forest(forest, results, looks)
    _draw_curves(curves, results, looks)
    matrix, heard = below.subfigures(1, 2, width_ratios=[5, 4])
    axes = matrix.subplots()
    labels = results[shown].details["labels"]
    draw_confusion(axes, confusion, labels)
    axes.set_title(f"{shown}: {np.trace(confusion)} of {confusion.sum()} test recordings are right", fontsize=11)
    picture, bars = heard.subplots(2, 1, height_ratios=[3, 2])
    _draw_spectrogram(picture, bars, example, looks[shown])
    return save(figure, path)


def _draw_forest(axes: "Axes", results: Mapping[str, RunResult], looks: Mapping[str, Style]) -> None:
    """Scores with their intervals, the best on top, and the size of each method."""
    from matplotlib.ticker import PercentFormatter

    ranked = sorted(results, key=lambda name: float(headline(results[name])[1]["accuracy"]), reverse=True)
    for place, name in enumerate(ranked):
        _, scores = headline(results[name])
        value = scores["accuracy"]
        interval = [[value - scores["accuracy_low"]], [scores["accuracy_high"] - value]]
        style = looks[name]
        axes.errorbar(
            value, place, xerr=interval, color=style.color, marker=style.marker, markersize=9, capsize=4, linewidth=2
        )
        size = f"{100 * value:.1f} %   {results[name].parameters['total']:,} trained"
        axes.text(1.02, place, size, va="center", fontsize=9, color=INK, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(ranked)), ranked)
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    split = "/".join(sorted({result.describe_split(headline(result)[0]) for result in results.values()}))
    axes.set(xlabel=f"{split} accuracy", title="accuracy with its 95 % interval; parameters, head included")
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    style_axes(axes, grid="x")


def _draw_curves(axes: "Axes", results: Mapping[str, RunResult], looks: Mapping[str, Style]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    for name, result in results.items():
        rows = [row for row in result.learning_curve if "valid_accuracy" in row]
        style = looks[name]
        axes.plot(
            [row["epoch"] for row in rows],
            [row["valid_accuracy"] for row in rows],
            color=style.color,
            marker=style.marker,
            markersize=6,
            linewidth=1.8,
            label=name,
        )
    axes.set(xlabel="epoch", ylabel="valid accuracy", title="learning curves")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_ylim(bottom=0)
    style_axes(axes)
    add_inner_legend(axes, columns=-(-len(results) // 6))


def _draw_spectrogram(above: "Axes", below: "Axes", example: HeardExample, style: Style) -> None:
    """A recording as the ear has it, and the likeliest classes under it."""
    from matplotlib.ticker import PercentFormatter

    with np.errstate(divide="ignore"):  # silence
        power, *_, image = above.specgram(
            example.waveform, NFFT=400, noverlap=240, Fs=SAMPLING_RATE, cmap="magma", scale="dB"
        )
    # The quieter half is noise; let it be dark.
    image.set_clim(10 * np.log10(np.maximum(np.percentile(power, (50, 100)), 1e-20)))
    predicted = example.probabilities[0][0]
    verdict = "right" if predicted == example.label else "wrong"
    heading = f'a test recording of "{plain(example.label)}" is taken for "{plain(predicted)}": {verdict}'
    above.set(xlabel="seconds", ylabel="Hz", title=heading)
    above.title.set_fontsize(11)
    ranked = example.probabilities[:5]
    places = range(len(ranked))
    below.barh(places, [value for _, value in ranked], color=style.color, height=0.65)
    below.set_yticks(places, [plain(label, 24) for label, _ in ranked])
    for place, (_, value) in zip(places, ranked, strict=True):
        below.text(value + 0.01, place, f"{100 * value:.0f} %", va="center", fontsize=9, color=INK)
    below.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    below.set(xlim=(0, 1.1), xlabel="probability", title="the likeliest classes")
    below.invert_yaxis()
    style_axes(below, grid="x")
