"""Plot of a pre-training's figures."""

from collections.abc import Sequence
from pathlib import Path

from mambavox.plotting import Style, add_legend, plain, save, style_axes, styles
from mambavox.training.pretraining.figures import Panel


def plot_curve(history: Sequence[dict[str, float]], path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw figures against updates, of training and of held-back recordings.

    Args:
        history: lines of ``metrics.jsonl``.
        path: png to write.
        title: of the plot.
        panels: what is drawn.
    """
    from matplotlib.figure import Figure  # half a second of imports

    figure = Figure(figsize=(4.3 * len(panels), 3.8), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        # One figure: a colour for each split. Several: a colour for each figure, and the splits by their lines.
        several = len(panel.keys) > 1
        looks = styles(panel.keys) if several else {"train": Style("#888888", ""), "valid": Style("#D55E00", "o")}
        for key in panel.keys:
            for prefix, part, line in (("", "train", "-"), ("eval_", "valid", "o--")):
                points = [(row["step"], row[prefix + key]) for row in history if prefix + key in row]
                label = f"{key.replace('_', ' ')}, {part}" if several else part
                color = looks[key if several else part].color
                if points:
                    axes.plot(*zip(*points, strict=True), line, label=label, color=color, markersize=3, linewidth=1)
        if panel.keys == ("perplexity",):
            points = [(row["step"], row["target_perplexity"]) for row in history if "target_perplexity" in row]
            if points:
                axes.plot(*zip(*points, strict=True), ":", color="#0072B2", label="targets", linewidth=1)
        axes.set(title=panel.title, xlabel="updates", ylabel=panel.unit)
        style_axes(axes)
    add_legend(figure)
    figure.suptitle(plain(title, 100), fontsize=12)
    save(figure, path)
