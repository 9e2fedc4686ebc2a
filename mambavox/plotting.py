"""The look of every plot: a colour and a marker for each method and model, the axes, the file."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mambavox.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
NO_MATPLOTLIB = "no plots are drawn: matplotlib is not installed (pip install matplotlib)"
"""What is said once where it is missing; nothing else depends on it."""

GRID = "#dddddd"
INK = "#333333"
"""Of text and of lines that stand for no method."""


@dataclass(frozen=True)
class Style:
    """How a method or a model is drawn.

    Attributes:
        color: of its line and marker.
        marker: of its points, as matplotlib names it.
        line: of its curve, as matplotlib names it.
        hatch: of its bar, as matplotlib names it.
    """

    color: str
    marker: Any
    line: str = "-"
    hatch: str = ""


METHOD_STYLES = {
    "mambadapter": Style("#D55E00", "o"),
    "mambadapter-residual": Style("#F0A07A", (5, 1, 0), "--", "//"),
    "bottleneck": Style("#0072B2", "s"),
    "lora": Style("#009E73", "^"),
    "linear": Style("#888888", "X"),
    "full": Style("#222222", "D"),
    "conformer": Style("#E69F00", "v"),
    "convpass": Style("#56B4E9", "P"),
    "bitfit": Style("#CC79A7", "<"),
    "prefix": Style("#882255", ">"),
    "prompt": Style("#AA4499", "p"),
    "moa": Style("#332288", "h"),
    "gc-lora": Style("#117733", "*"),
    "dora": Style("#44AA99", "d"),
    "vera": Style("#999933", "H"),
    "adalora": Style("#6699CC", "8"),
    "ia3": Style("#884400", (4, 1, 0)),
}
"""Of the methods, in every plot the same. Most colours are Okabe and Ito's, which colour-blind readers tell apart."""

MODEL_STYLES = {
    "mamba": Style("#D55E00", "o"),
    "mamba2": Style("#E69F00", "s"),
    "ext-bimamba": Style("#CC79A7", "^"),
    "inn-bimamba": Style("#882255", "v"),
    "transformer": Style("#0072B2", "D"),
    "causal-transformer": Style("#56B4E9", "P"),
    "HubertModel": Style("#222222", "X"),
}
"""Of the encoders, in every plot the same."""

_OTHERS = (
    Style("#0072B2", "o"),
    Style("#D55E00", "s"),
    Style("#009E73", "^"),
    Style("#CC79A7", "D"),
    Style("#E69F00", "v"),
    Style("#56B4E9", "P"),
    Style("#332288", "X"),
    Style("#999933", "<"),
    Style("#882255", ">"),
    Style("#888888", "p"),
)
_LINES = ("-", "--", ":", "-.")
_HATCHES = ("", "//", "..", "xx", "--", "oo", "++")
_LIGHTER = 0.4  # share of white in the colour of a further variant


def styles(names: Sequence[str]) -> dict[str, Style]:
    """How things are drawn in one plot, each in another way.

    Args:
        names: of methods, of models, or of variants of them, such as ``lora r=4`` or ``base mamba``. Variants of one
            method have its colour, in lighter shades, and markers and lines of their own. What is no method and no
            model has the first style that is free.
    """
    known = {**METHOD_STYLES, **MODEL_STYLES}
    keys = {name: next((word for word in name.replace(",", " ").split() if word in known), None) for name in names}
    found: dict[str, Style] = {}
    variants: dict[str, int] = {}
    for name, key in keys.items():
        if key is not None:
            variants[key] = variants.get(key, -1) + 1
            found[name] = _variant(known[key], variants[key])
    taken = {style.color for style in found.values()}
    free = (style for style in _others() if style.color not in taken)
    return {name: found[name] if key is not None else next(free) for name, key in keys.items()}


def _others() -> Iterator[Style]:
    """Ever new styles, of which those after the first round are lighter, and at last differ by their lines alone."""
    for number in itertools.count():
        for style in _OTHERS:
            yield Style(_lighter(style.color, number), style.marker, *_texture(number))


def _variant(style: Style, number: int) -> Style:
    if not number:
        return style
    markers = [other.marker for other in METHOD_STYLES.values() if other.marker != style.marker]
    return Style(_lighter(style.color, number), markers[(number - 1) % len(markers)], *_texture(number))


def _texture(number: int) -> tuple[str, str]:
    return _LINES[number % len(_LINES)], _HATCHES[number % len(_HATCHES)]


def _lighter(color: str, times: int) -> str:
    keep = (1 - _LIGHTER) ** min(times, 3)
    channels = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(255 - keep * (255 - channel)):02X}" for channel in channels)


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def style_axes(axes: "Axes", *, grid: Literal["both", "x", "y"] = "both") -> None:
    """A light grid behind what is drawn, and no box around it.

    Args:
        axes: of a panel.
        grid: ``x``, ``y`` or ``both``.
    """
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11)


def plain_log_axis(axis: Any) -> None:
    """Numbers at the marks of a logarithmic axis as people write them: 20, 1,000, and no powers of ten.

    Args:
        axis: ``axes.xaxis`` or ``axes.yaxis``.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    # Where the axis has few decades, marks between them, too.
    between = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def add_inner_legend(axes: "Axes", columns: int = 1) -> None:
    """A legend inside a panel, where it hides least.

    Args:
        axes: of the panel.
        columns: of the legend.
    """
    axes.legend(loc="best", ncols=columns, fontsize=9, framealpha=0.85, edgecolor="none")


def add_legend(figure: "Figure", columns: int | None = None) -> None:
    """One legend below all panels, of all their curves.

    Args:
        figure: with its panels.
        columns: most entries in a line.
    """
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(columns or len(entries), len(entries)),
        frameon=False,
    )


def save(figure: "Figure", path: Path) -> Path:
    """Write a plot, whole or not at all.

    Args:
        figure: what is drawn.
        path: the file; its ending says the format.
    """
    with replacing(path) as partial, warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        figure.savefig(partial, format=path.suffix[1:], dpi=DOTS_PER_INCH)
    return path


def plain(text: str, longest: int = 40) -> str:
    """A text as it stands, in one line: dollar signs begin no formula. Of a long one the end is kept.

    Args:
        text: such as the name of a class or of a file.
        longest: characters.
    """
    line = " ".join(text.split())
    return (line if len(line) <= longest else "..." + line[3 - longest :]).replace("$", r"\$")
