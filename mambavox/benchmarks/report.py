"""What a benchmark found, as files: a table, figures as JSON and, of some, a plot."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mambavox.files import to_json, write_atomically
from mambavox.plotting import can_draw, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    def figure(self) -> "Figure | None":
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
        figure = self.figure() if can_draw() else None
        if figure is None:
            return [f"{name}.md", f"{name}.json"]
        save(figure, folder / f"{name}.png")
        return [f"{name}.md", f"{name}.json", f"{name}.png"]


def in_words(facts: Mapping[str, Any]) -> str:
    """The machine and the settings in one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())
