"""Plot of a pre-training's figures."""

from collections.abc import Sequence
from pathlib import Path

_PANELS = (
    ("loss of hidden frames", "prediction_loss", "nats"),
    ("accuracy on hidden frames", "masked_accuracy", "share"),
    ("perplexity of units", "perplexity", "units"),
)


def plot_curve(history: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Draw loss, accuracy and perplexity against updates, of training and of held-back recordings.

    Args:
        history: lines of ``metrics.jsonl``.
        path: png to write.
        title: of the plot.
    """
    from matplotlib.figure import Figure  # half a second of imports

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axes, (name, key, unit) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for prefix, label, style in (("", "train", "-"), ("eval_", "valid", "o-")):
            points = [(line["step"], line[prefix + key]) for line in history if prefix + key in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
        if key == "perplexity":
            points = [(line["step"], line["target_perplexity"]) for line in history if "target_perplexity" in line]
            if points:
                axes.plot(*zip(*points, strict=True), "--", color="grey", label="targets", linewidth=1)
        axes.set(title=name, xlabel="updates", ylabel=unit)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
