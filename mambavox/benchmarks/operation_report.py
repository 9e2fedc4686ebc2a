"""The figures of a benchmark: a table, JSON and a plot."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mambavox.benchmarks.limits import Limit, Rates
from mambavox.benchmarks.measure import Timing
from mambavox.benchmarks.parity import LeftOut
from mambavox.benchmarks.registry import PASSES, Pass, Sizes, stream_elements
from mambavox.benchmarks.report import Report, in_words
from mambavox.plotting import add_legend, style_axes, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIB = 1 << 20


@dataclass(frozen=True)
class Measurement:
    """A pass at a shape.

    Attributes:
        shape: its name.
        sizes: of the inputs.
        direction: the pass.
        parity: largest relative error of our candidates there, beside float64.
        limit: the least time.
        timings: of the candidates by name, ours first.
        peaks: bytes beyond the inputs by candidate, of forward and backward.
    """

    shape: str
    sizes: Sizes
    direction: Pass
    parity: float
    limit: Limit
    timings: Mapping[str, Timing]
    peaks: Mapping[str, int]

    def ratio(self, name: str) -> float:
        """How many times as long a candidate takes as the first, the one that users get."""
        return self.timings[name].median / next(iter(self.timings.values())).median

    def over_limit(self, name: str) -> float:
        """How many times as long a candidate takes as the limit."""
        return self.timings[name].median / self.limit.seconds


@dataclass(frozen=True)
class OperationReport(Report):
    """All figures of one run of the benchmark of an operation.

    Attributes:
        operation: its name.
        facts: the machine and the settings, by name.
        itemsize: bytes of an element.
        rates: of the machine.
        measurements: in the order in which they were made.
        left_out: what was not run, and why.
    """

    name = "operation"

    operation: str
    facts: Mapping[str, Any]
    itemsize: int
    rates: Rates
    measurements: list[Measurement]
    left_out: list[LeftOut]

    def markdown(self) -> str:
        """A table for each shape, with the facts above and what was left out below."""
        lines = [f"# {self.operation}", "", in_words(self.facts), ""]
        lines += [self._rates_in_words(), ""]
        for shape in dict.fromkeys(row.shape for row in self.measurements):
            lines += self._table([row for row in self.measurements if row.shape == shape])
        if self.left_out:
            lines += ["Left out:", "", *(f"- {reason}" for reason in self.left_out), ""]
        return "\n".join(lines)

    def to_mapping(self) -> dict[str, Any]:
        """Everything, for JSON: seconds, bytes and ratios as numbers."""
        rows = []
        for row in self.measurements:
            for name, timing in row.timings.items():
                rows.append(
                    {
                        "shape": row.shape,
                        "sizes": dict(row.sizes),
                        "pass": row.direction,
                        "candidate": name,
                        "seconds": timing.seconds,
                        "median": timing.median,
                        "quartiles": timing.quartiles,
                        "ratio_to_first": row.ratio(name),
                        "limit": {"compute": row.limit.compute, "memory": row.limit.memory},
                        "ratio_to_limit": row.over_limit(name),
                        "peak_extra_bytes": row.peaks.get(name),
                        "stream_bytes": stream_elements(row.sizes) * self.itemsize,
                        "parity": row.parity,
                    }
                )
        return {
            "operation": self.operation,
            "facts": dict(self.facts),
            "rates": asdict(self.rates),
            "rows": rows,
            "left_out": [asdict(item) for item in self.left_out],
        }

    def figure(self) -> "Figure":
        """Draw time against shape, one curve a candidate and one for the limit."""
        from matplotlib.figure import Figure

        passes = list(dict.fromkeys(row.direction for row in self.measurements))
        figure = Figure(figsize=(6.5 * len(passes), 5), layout="constrained")
        figure.suptitle(self.operation, fontsize=13, fontweight="bold")
        names = list(dict.fromkeys(name for row in self.measurements for name in row.timings))
        shapes = list(dict.fromkeys(row.shape for row in self.measurements))
        for axes, direction in zip(figure.subplots(1, len(passes), squeeze=False)[0], passes, strict=True):
            rows = [row for row in self.measurements if row.direction == direction]
            for name, style in styles(names).items():
                timed = [row for row in rows if name in row.timings]
                axes.plot(
                    [shapes.index(row.shape) for row in timed],
                    [1e3 * row.timings[name].median for row in timed],
                    color=style.color,
                    marker=style.marker,
                    label=name,
                )
            limits = [1e3 * row.limit.seconds for row in rows]
            axes.plot(range(len(rows)), limits, color="black", linestyle="--", marker="_", label="limit")
            axes.set_yscale("log")
            axes.set(title=PASSES[direction], ylabel="milliseconds", xticks=range(len(shapes)), xticklabels=shapes)
            style_axes(axes)
        add_legend(figure, 3 * len(passes))
        return figure

    def _rates_in_words(self) -> str:
        words = f"memory {self.rates.bandwidth / 1e9:.1f} GB/s"
        if self.rates.vector_operations is not None:
            words += f", vector operations {self.rates.vector_operations / 1e9:.1f} G/s, every lane counted"
        return f"Measured at best: {words}." + (f" ({self.rates.note})" if self.rates.note else "")

    def _table(self, rows: list[Measurement]) -> list[str]:
        stream = stream_elements(rows[0].sizes) * self.itemsize / _MIB
        sizes = ", ".join(f"{key} {size}" for key, size in rows[0].sizes.items())
        limits = "; ".join(
            f"{PASSES[row.direction]} {1e3 * row.limit.seconds:.3g} ms (error of ours at most {row.parity:.1e})"
            for row in rows
        )
        first = next(iter(rows[0].timings))
        header = "| candidate |"
        for row in rows:
            header += f" {PASSES[row.direction]}, ms [quartiles] | repetitions | x {first} | x limit |"
        names = list(dict.fromkeys(name for row in rows for name in row.timings))
        lines = [
            f"## {rows[0].shape}: {sizes}",
            "",
            f"Limit: {limits}. A tensor of the size of x is {stream:.3g} MiB.",
            "",
            header + " peak extra memory, MiB |",
            "|---|" + "--:|" * (4 * len(rows) + 1),
        ]
        for name in names:
            cells = [name]
            for row in rows:
                cells += _cells(row, name)
            peak = next((row.peaks[name] for row in rows if name in row.peaks), None)
            cells.append("-" if peak is None else f"{peak / _MIB:.1f}")
            lines.append("| " + " | ".join(cells) + " |")
        return [*lines, ""]


def _cells(row: Measurement, name: str) -> list[str]:
    if name not in row.timings:
        return ["-"] * 4
    timing = row.timings[name]
    lower, upper = (1e3 * seconds for seconds in timing.quartiles)
    return [
        f"{1e3 * timing.median:.4g} [{lower:.4g}, {upper:.4g}]",
        str(len(timing.seconds)),
        f"{row.ratio(name):.3g}",
        f"{row.over_limit(name):.3g}",
    ]
