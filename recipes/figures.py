"""Draw the figures of the documents from the tables of RESULTS.md, so that both say the same.

    python recipes/figures.py

Not drawn here, since their figures stand in no table: ``nano-mamba-hubert.png``, the curve of a pre-training, and
``serve.png``, a screenshot.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mambavox.plotting import GRID, INK, add_inner_legend, add_legend, plain_log_axis, save, style_axes, styles

ROOT = Path(__file__).parents[1]
Table = list[dict[str, str]]


def read_table(text: str, heading: str, first_column: str) -> Table:
    """The rows of a Markdown table, by the names of its columns.

    Args:
        text: of the document.
        heading: under which the table stands.
        first_column: its header, which may be empty.
    """
    lines = text[text.index(f"# {heading}\n") :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_column}".rstrip() + " |"))
    names, _, *rows = [_cells(line) for line in _while_table(lines[start:])]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _while_table(lines: Sequence[str]) -> list[str]:
    end = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return list(lines[:end])


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def numbers(cell: str) -> list[float]:
    """The numbers of a cell; 2.7 M is a million of them."""
    found = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", cell)]
    return [1e6 * number for number in found] if cell.endswith(" M") else found


def real_recordings(text: str, folder: Path) -> None:
    """Accuracy of the methods on each set, and against their parameters."""
    rows = read_table(text, "Eight methods on real recordings", "method")
    names = [row["method"].split(",")[0] for row in rows]
    tasks = [name for name in rows[0] if name not in ("method", "trained parameters")]
    looks = styles(names)
    forest = Figure(figsize=(3.6 * len(tasks), 4), layout="constrained")
    for axes, task in zip(forest.subplots(1, len(tasks), sharey=True), tasks, strict=True):
        for place, (name, row) in enumerate(zip(names, rows, strict=True)):
            mean, deviation = numbers(row[task])[:2]
            _point(axes, mean, place, looks[name], xerr=deviation)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set(title=task, xlabel="test accuracy in %")
        style_axes(axes, grid="x")
    forest.suptitle("mean and deviation over three seeds")
    save(forest, folder / "real-recordings.png")

    plane = Figure(figsize=(3.6 * len(tasks), 4.2), layout="constrained")
    for axes, task in zip(plane.subplots(1, len(tasks)), tasks, strict=True):
        for name, row in zip(names, rows, strict=True):
            mean, deviation = numbers(row[task])[:2]
            parameters = numbers(row["trained parameters"])[0]
            if parameters:
                _point(axes, parameters, mean, looks[name], yerr=deviation, label=name)
            else:
                style = {"color": looks[name].color, "linestyle": (0, (5, 3))}
                axes.axhline(mean, label=f"{name} (the head alone)", **style)
        axes.set(title=task, xlabel="trained parameters, head not counted", ylabel="test accuracy in %", xscale="log")
        axes.margins(x=0.12, y=0.1)
        axes.autoscale_view()
        plain_log_axis(axes.xaxis)
        style_axes(axes)
    add_legend(plane, columns=8)
    save(plane, folder / "real-recordings-parameters.png")


def _point(axes: Any, x: float, y: float, style: Any, **options: Any) -> None:
    look = {"color": style.color, "marker": style.marker, "markersize": 8, "capsize": 3, "linewidth": 1.6}
    axes.errorbar(x, y, linestyle="none", **look, **options)


def recognition(text: str, folder: Path) -> None:
    """Error rates by the length of documents, on an axis from zero."""
    rows = read_table(text, "Causal Mamba beside the causal Transformer", "")
    joined = {1 if "100 recordings" in row[""] else numbers(row[""])[0]: row for row in rows if "test_other" in row[""]}
    encoders = ("mamba", "causal-transformer")
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, rate in zip(figure.subplots(1, 2, sharey=True), ("WER", "CER"), strict=True):
        for encoder, style in styles(encoders).items():
            values = [numbers(row[f"{encoder} {rate}"]) for row in joined.values()]
            means, deviations = zip(*values, strict=True)
            look = {"color": style.color, "marker": style.marker, "capsize": 3, "label": encoder}
            axes.errorbar(list(joined), means, yerr=deviations, **look)
        axes.axhline(100, color=GRID, linewidth=1.5)
        axes.set(xlabel="recordings joined to a document", ylabel=f"{rate} in %", xscale="log", ylim=(0, 110))
        axes.set_xticks(list(joined), [str(int(count)) for count in joined])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{rate}: mean and deviation over three seeds")
        style_axes(axes)
        add_inner_legend(axes)
    save(figure, folder / "recognition.png")


def streaming(text: str, folder: Path) -> None:
    """Time of a step and bytes of the state against the past of a stream; a range of a table is a band."""
    columns = {"20 ms step, ms": 20, "320 ms chunk, ms": 320, "state, MiB": None}
    encoder, found = "", {}
    for row in read_table(text, "A stream by the length of its past", ""):
        encoder = row[""] or encoder
        found.setdefault(encoder, []).append(row)
    shown = {name: rows for name, rows in found.items() if "bfloat16" not in name}
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    for axes, (column, real_time) in zip(figure.subplots(1, 3), columns.items(), strict=True):
        for name, style in styles(list(shown)).items():
            ranges = [row for row in shown[name] if " to " in row["past"]]
            points = [row for row in shown[name] if " to " not in row["past"]]
            for row in ranges:
                low, *high = numbers(row[column])
                band = {"color": style.color, "alpha": 0.35, "linewidth": 2, "label": f"{name} (range)"}
                axes.fill_between(_seconds(row["past"]), low, (high or [low])[0], **band)
            if points:
                x = [_seconds(row["past"])[0] for row in points]
                y = [numbers(row[column])[0] for row in points]
                axes.plot(x, y, color=style.color, marker=style.marker, label=name)
        if real_time:
            axes.axhline(real_time, color=INK, linestyle="--", linewidth=1, label="real time")
        axes.set(xscale="log", yscale="log", xlabel="past of the stream, s", title=column)
        plain_log_axis(axes.xaxis)
        plain_log_axis(axes.yaxis)
        style_axes(axes)
    add_legend(figure)
    save(figure, folder / "streaming.png")


def _seconds(past: str) -> list[float]:
    """Such as ``10 s to 20 min``."""
    return [float(number) * (60 if unit == "min" else 1) for number, unit in re.findall(r"(\d+) (s|min)\b", past)]


def training(text: str, folder: Path) -> None:
    """Speed and memory of training by the length of the recording, as far as they are of one machine."""
    rows = [
        row
        for row in read_table(text, "Training by the length of the recording", "seconds")
        if "Zen" not in row["seconds"]
    ]
    names = {
        "Mamba": "mamba",
        "ext-bimamba": "ext-bimamba",
        "our Transformer": "transformer",
        "HubertModel": "HubertModel",
    }
    columns = {names[column.split(",")[0]]: column for column in rows[0] if column != "seconds"}
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    titles = ("seconds of audio a second", "peak memory beyond weights and gradients, MiB")
    for number, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        for name, style in styles(list(columns)).items():
            cells = [numbers(row[columns[name]]) for row in rows]
            values = [cell[-1] if number else cell[0] for cell in cells]
            axes.plot(
                [numbers(row["seconds"])[0] for row in rows], values, color=style.color, marker=style.marker, label=name
            )
        axes.set(xscale="log", yscale="log", xlabel="length of the recording, s", title=title)
        plain_log_axis(axes.xaxis)
        plain_log_axis(axes.yaxis)
        style_axes(axes)
    add_legend(figure)
    save(figure, folder / "training.png")


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "RESULTS.md")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures")
    arguments = parser.parse_args()
    text = arguments.results.read_text(encoding="utf-8")
    for draw in (real_recordings, recognition, streaming, training):
        draw(text, arguments.output)


if __name__ == "__main__":
    main()
