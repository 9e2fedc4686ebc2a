"""What a benchmark found, as files: a table, figures as JSON and, of some, a plot."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mambavox.files import to_json, write_atomically


class Report(ABC):
    """All figures of a benchmark.

    Attributes:
        name: of the benchmark, and of its files.
    """

    name: ClassVar[str]

    @abstractmethod
    def markdown(self) -> str:
        """The tables."""

    @abstractmethod
    def to_mapping(self) -> dict[str, Any]:
        """Everything, for JSON."""

    def figure(self) -> Figure | None:
        """The plot, of a benchmark that has one."""
        return None

    def write(self, folder: Path, name: str | None = None) -> list[str]:
        """Write ``name.md``, ``name.json`` and, where there is a plot, ``name.png``.

        Args:
            folder: made where it does not exist.
            name: of the files, without an ending; default the benchmark's.

        Returns:
            The files' names.
        """
        name = name or self.name
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.md", self.markdown())
        write_atomically(folder / f"{name}.json", to_json(self.to_mapping()))
        figure = self.figure()
        if figure is None:
            return [f"{name}.md", f"{name}.json"]
        figure.savefig(folder / f"{name}.png", dpi=150)
        return [f"{name}.md", f"{name}.json", f"{name}.png"]


def in_words(facts: Mapping[str, Any]) -> str:
    """The machine and the settings in one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def make_plain(axes: Axes) -> None:
    """A light grid behind the curves, and no box around them."""
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(figure: Figure, columns: int | None = None) -> None:
    """One legend below all panels, of the first one's curves."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(columns or len(labels), len(labels)), frameon=False
    )
