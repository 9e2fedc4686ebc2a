"""One colour and marker for each method, in every plot."""

from pathlib import Path

from matplotlib.figure import Figure

from mambavox.adapters import METHODS
from mambavox.plotting import METHOD_STYLES, MODEL_STYLES, add_legend, plain, save, styles


def test_every_method_has_a_colour_and_a_marker_of_its_own() -> None:
    assert METHOD_STYLES.keys() == METHODS.keys()
    for table in (METHOD_STYLES, MODEL_STYLES):
        assert len({style.color for style in table.values()}) == len(table)
        assert len({style.marker for style in table.values()}) == len(table)


def test_a_method_looks_the_same_in_every_plot() -> None:
    alone, beside = styles(["lora"]), styles(["full", "lora r=4", "base mamba", "something else"])
    assert alone["lora"] == beside["lora r=4"] == METHOD_STYLES["lora"]
    assert beside["base mamba"] == MODEL_STYLES["mamba"]
    names = [f"lora r={rank}" for rank in range(9)] + [f"other {number}" for number in range(25)]
    assert len(set(styles(names).values())) == len(names), "two things in one plot look alike"
    markers = {styles(names)[name].marker for name in names[:9]}
    assert len(markers) == 9


def test_texts_that_matplotlib_would_read_as_formulas(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().set_title(plain("a$b_{$ c\n日本"))
    add_legend(figure)
    assert save(figure, tmp_path / "a.png").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert plain("x" * 50 + "end", 10) == "...xxxxend"
