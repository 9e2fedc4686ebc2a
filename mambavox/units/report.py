"""A table and a plot of unit quality over sources and layers."""

import json
from collections.abc import Sequence
from pathlib import Path

from mambavox.plotting import add_legend, can_draw, save, style_axes, styles
from mambavox.units.quality import LayerQuality

COLUMNS = {
    "source": "source",
    "num_clusters": "clusters",
    "phone_purity": "phone purity",
    "cluster_purity": "cluster purity",
    "pnmi": "PNMI",
    "perplexity": "perplexity",
    "units_used": "used",
    "phone_pwcca": "PWCCA phone",
    "phone_cca": "CCA phone",
    "phone_cka": "CKA phone",
    "speaker_cca": "CCA speaker",
}
"""Fields of a row, and what the table calls them."""

_CURVES = (
    ("phone_purity", "Phone purity"),
    ("pnmi", "PNMI"),
    ("phone_cca", "CCA with phones, held out"),
    ("speaker_cca", "CCA with speakers, held out"),
)


def cells(quality: LayerQuality) -> list[str]:
    """A row of the table, in the order of ``COLUMNS``."""
    row = quality.to_mapping()
    found = []
    for column in COLUMNS:
        value = row[column]
        if value is None:
            found.append("-")
        elif column == "perplexity":
            found.append(f"{value:.1f}")
        else:
            found.append(f"{value:.3f}" if isinstance(value, float) else str(value))
    return found


def markdown(rows: Sequence[LayerQuality]) -> str:
    """The table."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    quality = rows[0].quality
    lines += ["", f"{quality.frames} frames; a single unit would have phone purity {quality.chance_purity:.3f}."]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[LayerQuality], path: Path) -> None:
    """Draw the figures against the layer, one curve a model; MFCC as a dashed line.

    Args:
        rows: of one or several models.
        path: the picture; its ending says the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    models = list(dict.fromkeys(row.source.rpartition(":")[0] for row in rows))
    for axes, (field, title) in zip(figure.subplots(2, 2).flat, _CURVES, strict=True):
        lowest = 0.0
        looks = styles([model for model in models if model])
        for model in models:
            of_model = [row for row in rows if row.source.rpartition(":")[0] == model]
            values = {row.source.rpartition(":")[2]: row.to_mapping()[field] for row in of_model}
            known = {layer: float(value) for layer, value in values.items() if value is not None}
            lowest = min([lowest, *known.values()])
            if model:
                axes.plot(
                    [int(layer) for layer in known],
                    list(known.values()),
                    color=looks[model].color,
                    marker=looks[model].marker,
                    label=model,
                )
            else:
                for name, value in known.items():
                    axes.axhline(value, color="black", linestyle="--", label=name)
        axes.set(title=title, xlabel="layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=lowest)
        style_axes(axes)
    add_legend(figure, columns=3)
    save(figure, path)


def write(rows: Sequence[LayerQuality], folder: Path) -> None:
    """Write ``quality.md``, ``quality.json`` and, where there is matplotlib, ``quality.png``.

    Args:
        rows: of the table.
        folder: made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.md").write_text(markdown(rows), encoding="utf-8")
    content = json.dumps([row.to_mapping() for row in rows], indent=2, ensure_ascii=False) + "\n"
    (folder / "quality.json").write_text(content, encoding="utf-8")
    if can_draw():
        plot(rows, folder / "quality.png")
