"""``mambavox compare``, as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner

from mambavox.cli import app
from mambavox.cli.compare import CompareOptions, _grid
from mambavox.evaluation.compare import compare as compare_module
from mambavox.evaluation.compare.worker import run_cell

FLAGS = ("--seeds", "1", "--learning-rates", "1e-2", "--epochs", "1", "--batch-size", "4", "--device", "cpu")


def _run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout, result.stderr


@pytest.fixture
def flags(backbone: Callable[[str], str], tones: str, tmp_path: Path) -> tuple[str, ...]:
    """A tiny comparison's flags, but for its methods."""
    return ("--task", f"tones={tones}", "--backbone", backbone("ast"), "--output", str(tmp_path / "out"), *FLAGS)


def test_the_dry_run_of_figure_2_needs_neither_data_nor_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(_run("--preset", "scaling", "--dry-run", "--json")[0])
    assert len(rows) == 32
    found = {(row["method"], row["bottleneck_dim"]): row["parameters"] for row in rows}
    assert found["mambadapter", 12] == 64_824
    assert found["bottleneck", 48] == 914_496
    assert found["conformer", 8] == 272_256


def test_a_dry_run_lists_the_cells(flags: tuple[str, ...], tmp_path: Path) -> None:
    out, _ = _run(*flags, "--methods", "linear, lora r=2", "--learning-rates", "x1,x2", "--dry-run")
    lines = out.splitlines()
    assert len(lines) == 2 * 3
    assert lines[0] == "search: tones, seed 0, rate 0.001, linear: 0 parameters, to do"
    assert lines[5].startswith("final: tones, seed 0, its best rate, lora r=2: ")
    assert not (tmp_path / "out").exists()


def test_rates_that_are_given_come_before_those_of_a_preset() -> None:
    grid = _grid(CompareOptions(preset="whisper-base", learning_rates="1e-4"), {})
    assert {grid.rates(variant) for variant in grid.variants} == {(1e-4,)}


def test_a_comparison(flags: tuple[str, ...], tmp_path: Path) -> None:
    out, err = _run(*flags, "--methods", "linear, lora r=2", "--workers", "1")
    assert "| lora r=2 |" in out
    assert out == (tmp_path / "out" / "report.md").read_text() + "\n" + out.splitlines()[-1] + "\n"
    assert "[2/2] tones-lora-r=2-lr0.01-seed0: test " in err
    again, err = _run(*flags, "--methods", "linear, lora r=2", "--json")
    assert "[" not in err
    assert json.loads(again) == json.loads((tmp_path / "out" / "results.json").read_text())


def test_failed_runs_are_an_error_after_the_report(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_cells(cells: Any, store: Any, *_: Any) -> None:
        for cell in cells:
            run_cell(cell, store.folder)

    monkeypatch.setattr(compare_module, "run_cells", run_cells)
    out, err = _run(*flags, "--methods", "linear, bottleneck bottleneck_dim=0", code=1)
    assert "failed (1)" in out
    assert "bottleneck_dim is 0" in out
    assert "1 runs failed" in err


def test_an_interruption_says_how_to_go_on(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_module, "run_cells", interrupt)
    _, err = _run(*flags, "--methods", "linear", code=130)
    assert "the same command goes on" in err


def test_jobs_for_a_cluster(flags: tuple[str, ...], tmp_path: Path) -> None:
    out, _ = _run(*flags, "--methods", "linear", "--jobs-file", tmp_path / "jobs.txt")
    assert "1 commands (final)" in out
    (line,) = (tmp_path / "jobs.txt").read_text().splitlines()
    program, command, *words = line.split()
    assert (program, command) == ("mambavox", "compare")
    _run(*words)
    out, err = _run(*flags, "--methods", "linear")
    assert "[1/" not in err
    assert "| linear |" in out
    _, err = _run("--output", tmp_path / "out", "--cell", "none-such", code=1)
    assert "no such planned cell" in err


def test_the_papers_settings_are_named(flags: tuple[str, ...]) -> None:
    faithful = ("--preset", "table1", "--faithful", "--methods", "linear")
    _, err = _run(*flags[2:], *faithful, "--task", "tones=x", "--dry-run", code=1)
    assert "the paper has no such corpus" in err
    _, err = _run(*flags[2:], *faithful, "--task", "esc50=x", "--seeds", "6", "--dry-run", code=2)
    assert "the paper has 5: 10, 3768427010" in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "nothing to compare; give --preset"),
        (("--preset", "tabel1"), 2, "Did you mean table1"),
        (("--methods", "magic"), 1, "magic"),
        (("--methods", "lora rank=3"), 1, "unknown key 'rank'"),
        (("--methods", "linear"), 1, "no task to compare on"),
        (("--methods", "linear", "--task", "esc10"), 1, "expected its name and its data"),
        (("--methods", "linear", "--learning-rates", "fast"), 2, "expected such as 1e-3"),
        (("--methods", "linear", "--budgets", "many"), 2, "expected whole numbers"),
        (("--methods", "linear", "--epoch", "3"), 1, "unknown key 'epoch'"),
        (("--methods", "linear", "--seed", "3"), 1, "seed is set by the comparison itself"),
    ],
)
def test_mistakes_are_told_in_words(words: tuple[str, ...], code: int, message: str) -> None:
    out, err = _run(*words, code=code)
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in out + err


def test_every_preset_has_its_word() -> None:
    from mambavox.cli.compare import CompareOptions
    from mambavox.evaluation.compare.presets import PRESETS

    words = get_args(get_args(get_type_hints(CompareOptions)["preset"])[0])
    assert {*words} == {*PRESETS, "latency"}
