"""Methods side by side: a table for the terminal, a plot, JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.table import Table

from mambavox.files import to_json, write_atomically
from mambavox.runs.result import RunResult, describe_accuracy

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
"""Okabe and Ito's, which colour-blind readers tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


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


def plot_comparison(results: Mapping[str, RunResult], path: Path, title: str) -> None:
    """Draw accuracy against trainable parameters, with 95 % intervals, and the learning curves.

    Args:
        results: of the runs on one task, by name.
        path: the picture; its ending says the format.
        title: above it.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    for index, (name, result) in enumerate(results.items()):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        _, scores = headline(result)
        left.errorbar(
            result.parameters["total"],
            scores["accuracy"],
            yerr=[[scores["accuracy"] - scores["accuracy_low"]], [scores["accuracy_high"] - scores["accuracy"]]],
            color=color,
            marker=marker,
            markersize=8,
            capsize=4,
            linewidth=1.5,
        )
        curve = [row for row in result.learning_curve if "valid_accuracy" in row]
        right.plot(
            [row["epoch"] for row in curve],
            [row["valid_accuracy"] for row in curve],
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.8,
            label=name,
        )
    split = "/".join(sorted({result.describe_split(headline(result)[0]) for result in results.values()}))
    left.set_xscale("log")
    left.margins(x=0.15)
    left.set(xlabel="trainable parameters, head included", ylabel=f"{split} accuracy", title="accuracy (95 % interval)")
    right.set(xlabel="epoch", ylabel="valid accuracy", title="learning curves")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Below both, because points of methods of one size lie too close for names beside them.
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=11)
    for axes in (left, right):
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        style_axes(axes)
    figure.savefig(path, dpi=150)


def style_axes(axes: Axes) -> None:
    """Give axes the look of this project's plots."""
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11)
