"""Plot of a pre-training's figures."""

from collections.abc import Sequence
from pathlib import Path

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

    figure = Figure(figsize=(4.3 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, key in enumerate(panel.keys):
            for prefix, part, style in (("", "train", "-"), ("eval_", "valid", "o--")):
                points = [(line["step"], line[prefix + key]) for line in history if prefix + key in line]
                label = part if len(panel.keys) == 1 else f"{key.replace('_', ' ')}, {part}"
                color = f"C{number}" if len(panel.keys) > 1 else None
                if points:
                    axes.plot(*zip(*points, strict=True), style, label=label, color=color, markersize=3, linewidth=1)
        if panel.keys == ("perplexity",):
            points = [(line["step"], line["target_perplexity"]) for line in history if "target_perplexity" in line]
            if points:
                axes.plot(*zip(*points, strict=True), "--", color="grey", label="targets", linewidth=1)
        axes.set(title=panel.title, xlabel="updates", ylabel=panel.unit)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
