"""The figures of the documents say what the tables of RESULTS.md say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    """The recipe."""
    spec = importlib.util.spec_from_file_location("figures", ROOT / "recipes" / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_of_cells(figures: ModuleType) -> None:
    assert figures.numbers("91.2 ± 0.7 (1e-2)")[:2] == [91.2, 0.7]
    assert figures.numbers("2.7 M") == [2.7e6]
    assert figures.numbers("2,765 MiB") == [2765]


def test_every_figure_can_be_drawn_from_the_tables(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.update({path.name: figure}))
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    for draw in (figures.real_recordings, figures.recognition, figures.streaming, figures.training):
        draw(text, tmp_path)
    assert {path.name for path in (ROOT / "docs" / "figures").glob("*.png")} >= drawn.keys()
    forest = drawn["real-recordings.png"].axes
    assert [axes.get_title() for axes in forest] == ["fsdd", "arabic_speech_commands", "esc10", "coffee_intents"]
    assert len(forest[0].get_yticks()) == 8
    assert all(axes.get_ylim()[0] == 0 for axes in drawn["recognition.png"].axes), "error rates from zero"
    lines = {line.get_label(): line for line in drawn["streaming.png"].axes[0].lines}
    assert list(lines["causal-transformer"].get_ydata()) == [41.0, 57.1, 132, 385]
