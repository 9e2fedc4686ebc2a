"""The plots that a run leaves of itself: learning curves, confusions of classes, errors of transcripts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mambavox.plotting import INK, NO_MATPLOTLIB, add_inner_legend, can_draw, plain, save, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_FILE = "curve.png"
"""Plot of a training's figures."""
CONFUSION_FILE = "confusion.png"
"""Plot of the classes that were taken for others."""
ERRORS_FILE = "errors.png"
"""Plot of the error rates of recordings, and of the worst ones."""

PLOT_FILES = (CURVE_FILE, CONFUSION_FILE, ERRORS_FILE)

_TRAIN, _VALID, _SECOND = "#888888", "#D55E00", "#0072B2"
_NAMED = 40  # classes whose names fit beside a confusion matrix
_NUMBERED = 20  # classes whose counts fit into it
_CONFUSIONS = 20  # that are listed where they do not
_WORST = 12  # recordings that are named
_SPLITS = 4  # that are drawn in one plot


def plots_in(folder: Path) -> list[str]:
    """Names of the plots that lie in a folder."""
    return [name for name in PLOT_FILES if (folder / name).is_file()]


def draw_run(
    folder: Path,
    curve: Sequence[Mapping[str, float]],
    best_epoch: float,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    labels: Sequence[str] | None,
    title: str,
) -> str | None:
    """Draw the plots of an adaptation. Hours of training are not lost to a plot: what cannot be drawn is told.

    Args:
        folder: that the plots go into.
        curve: as ``RunResult.learning_curve``.
        best_epoch: the epoch that was kept.
        splits: see :func:`draw_predictions`.
        labels: the classes; ``None`` where the lines are of transcripts.
        title: above the plots.

    Returns:
        Why there are no plots, or ``None``.

    Raises:
        OSError: the folder cannot be written into.
    """
    if not can_draw():
        return NO_MATPLOTLIB
    problem = _attempted(lambda: plot_learning_curve(curve, best_epoch, title, folder / CURVE_FILE))
    return problem or draw_predictions(folder, splits, labels, title)


def draw_predictions(
    folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], labels: Sequence[str] | None, title: str
) -> str | None:
    """Draw what became of recordings: confusions of classes, or errors of transcripts.

    Args:
        folder: that the plots go into.
        splits: of each the lines of ``predictions.csv``; of several only those are drawn that are reported.
        labels: the classes; ``None`` where the lines are of transcripts.
        title: above the plots.

    Returns:
        Why there is no plot, or ``None``.

    Raises:
        OSError: the folder cannot be written into.
    """
    if not can_draw():
        return NO_MATPLOTLIB
    reported = {name: rows for name, rows in splits.items() if name not in ("train", "valid")} or dict(splits)
    if not reported:
        return None
    return _attempted(lambda: _draw_reported(folder, reported, labels, title))


def _draw_reported(
    folder: Path, reported: Mapping[str, Sequence[Mapping[str, Any]]], labels: Sequence[str] | None, title: str
) -> None:
    if labels is None:
        plot_errors(reported, title, folder / ERRORS_FILE)
        return
    rows = [row for rows in reported.values() for row in rows]
    counts = count_confusions(rows, labels)
    heading = f"{title}, {'/'.join(reported)}: {int(np.trace(counts))} of {len(rows)} are right"
    plot_confusion(counts, labels, heading, folder / CONFUSION_FILE)


def _attempted(draw: Callable[[], Any]) -> str | None:
    """Draw, and say why it cannot be done; a folder that cannot be written into is still an error."""
    try:
        draw()
    except OSError:
        raise
    except Exception as error:
        return f"no plots are drawn: {error}"
    return None


def plot_learning_curve(curve: Sequence[Mapping[str, float]], best_epoch: float, title: str, path: Path) -> Path:
    """Draw the losses and the scores of a training against the epochs.

    Args:
        curve: as ``RunResult.learning_curve``.
        best_epoch: the epoch that was kept.
        title: above the plot.
        path: the file; its ending says the format.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    scores = [key for key in ("valid_accuracy", "valid_wer", "valid_cer") if any(key in row for row in curve)]
    figure = Figure(figsize=(5.2 * (1 + bool(scores)), 4), layout="constrained")
    figure.suptitle(plain(title, 100), fontsize=12)
    panels = figure.subplots(1, 1 + bool(scores), squeeze=False)[0]
    losses = (("train_loss", "training", _TRAIN, "s"), ("valid_loss", "valid", _VALID, "o"))
    for key, label, color, marker in losses:
        _draw_curve(panels[0], curve, key, label, color, marker)
    panels[0].set(title="loss", ylabel="loss")
    for key, color, marker in zip(scores, (_VALID, _SECOND), ("o", "s"), strict=False):
        _draw_curve(panels[1], curve, key, _score_name(key), color, marker)
    if scores:
        panels[1].set(title="score on the valid split")
        panels[1].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for axes in panels:
        axes.axvline(best_epoch, color=INK, linestyle=":", linewidth=1, label=f"kept: epoch {best_epoch:g}")
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        add_inner_legend(axes)
        style_axes(axes)
    return save(figure, path)


def _draw_curve(
    axes: "Axes", curve: Sequence[Mapping[str, float]], key: str, label: str, color: str, marker: str
) -> None:
    rows = [row for row in curve if key in row]
    if rows:
        epochs, values = [row["epoch"] for row in rows], [row[key] for row in rows]
        axes.plot(epochs, values, color=color, marker=marker, markersize=4, linewidth=1.6, label=label)


def _score_name(key: str) -> str:
    name = key.removeprefix("valid_")
    return name if name == "accuracy" else name.upper()


def count_confusions(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> NDArray[np.int64]:
    """Count what was taken for what.

    Args:
        rows: lines of ``predictions.csv``.
        labels: the classes.

    Returns:
        ``(classes, classes)`` recordings of the row's class that were taken for the column's.
    """
    place = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for row in rows:
        counts[place[row["target"]], place[row["predicted"]]] += 1
    return counts


def plot_confusion(counts: NDArray[np.int64], labels: Sequence[str], title: str, path: Path) -> Path:
    """Draw which classes were taken for which; of many classes the most frequent confusions are listed beside it.

    Args:
        counts: see :func:`count_confusions`.
        labels: the classes.
        title: above the plot.
        path: the file; its ending says the format.
    """
    from matplotlib.figure import Figure

    listed = len(labels) > _NAMED
    size = 3 + 0.28 * min(max(len(labels), 6), _NUMBERED) + (2 if _NUMBERED < len(labels) <= _NAMED else 0)
    figure = Figure(figsize=(1.2 * size + 3.5 * listed, size), layout="constrained")
    panels = figure.subplots(1, 1 + listed, squeeze=False, width_ratios=[3, 1][: 1 + listed])[0]
    figure.suptitle(plain(title, 100), fontsize=12)
    image = draw_confusion(panels[0], counts, labels)
    figure.colorbar(image, ax=panels[0], label="share of the class", shrink=0.8)
    if listed:
        _list_confusions(panels[1], counts, labels)
    return save(figure, path)


def draw_confusion(axes: "Axes", counts: NDArray[np.int64], labels: Sequence[str]) -> Any:
    """Draw a confusion matrix into a panel: shades are shares of a class, numbers are recordings.

    Args:
        axes: of the panel.
        counts: see :func:`count_confusions`.
        labels: the classes.

    Returns:
        The image.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true class")
    if len(labels) <= _NAMED:
        names = [plain(label, 24) for label in labels]
        small = 9 if len(labels) <= _NUMBERED else 6
        axes.set_xticks(range(len(labels)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=small)
        axes.set_yticks(range(len(labels)), names, fontsize=small)
    else:
        axes.set(xlabel=f"predicted, of {len(labels)} classes")
    if len(labels) <= _NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    return image


def _list_confusions(axes: "Axes", counts: NDArray[np.int64], labels: Sequence[str]) -> None:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [divmod(int(place), len(labels)) for place in order if wrong.flat[place]]
    axes.axis("off")
    axes.set_title("most often confused", fontsize=11)
    lines = [
        f"{wrong[row, column]} of {plain(labels[row], 20)} taken for {plain(labels[column], 20)}"
        for row, column in pairs
    ]
    axes.text(0, 1, "\n".join(lines) or "none", va="top", fontsize=8, transform=axes.transAxes)


def plot_errors(splits: Mapping[str, Sequence[Mapping[str, Any]]], title: str, path: Path) -> Path:
    """Draw how error rates are distributed over recordings, and name the worst ones.

    Args:
        splits: of each the lines of ``predictions.csv``.
        title: above the plot.
        path: the file; its ending says the format.
    """
    from matplotlib.figure import Figure

    shown = dict(list(splits.items())[:_SPLITS])
    figure = Figure(figsize=(11, 4.2 * len(shown)), layout="constrained")
    figure.suptitle(plain(title, 100), fontsize=12)
    for (name, rows), (left, right) in zip(shown.items(), figure.subplots(len(shown), 2, squeeze=False), strict=True):
        _draw_distribution(left, name, rows)
        _draw_worst(right, rows)
    return save(figure, path)


def _draw_distribution(axes: "Axes", name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import PercentFormatter

    edges = np.linspace(0, 1.1, 23).tolist()
    kinds = (("wer", "words", "WER", _VALID, 0.35), ("cer", "characters", "CER", _SECOND, 0.0))
    for key, units, label, color, opacity in kinds:
        # What is beyond 100 % is counted at the end.
        values = np.minimum([float(row[key]) for row in rows], 1.05)
        errors = sum(int(row[f"{key.replace('wer', 'word').replace('cer', 'character')}_errors"]) for row in rows)
        total = max(sum(int(row[units]) for row in rows), 1)
        overall = f"{label}: {100 * errors / total:.1f} % over all"
        axes.hist(values, edges, histtype="stepfilled" if opacity else "step", alpha=opacity or 1, color=color)
        axes.axvline(min(errors / total, 1.05), color=color, linestyle="--", linewidth=1.2, label=overall)
    axes.set(xlabel="error rate of a recording (the last bar: more than 100 %)", ylabel="recordings")
    axes.set(title=f"{plain(name)}: {len(rows)} recordings", xlim=(0, 1.1))
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    add_inner_legend(axes)
    style_axes(axes)


def _draw_worst(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    wrong = [row for row in rows if int(row["word_errors"])]
    worst = sorted(wrong, key=lambda row: (-float(row["wer"]), -int(row["word_errors"])))[:_WORST]
    places = range(len(worst))
    axes.barh(places, [100 * float(row["wer"]) for row in worst], color=_VALID, alpha=0.6, height=0.7)
    axes.set_yticks(places, [plain(Path(row["recording"]).name, 28) for row in worst], fontsize=8)
    for place, row in zip(places, worst, strict=True):
        axes.text(0, place, f" {row['word_errors']} of {row['words']} words", va="center", fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.set(xlabel="WER in %", title="the worst recordings" if worst else "no recording with an error")
    style_axes(axes, grid="x")
