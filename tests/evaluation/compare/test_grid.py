"""Grids: what a cell's configuration is, how variants and tasks are written, mistakes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_corpora import write_esc50

from mambavox.data import read_examples
from mambavox.errors import ConfigError, DataError
from mambavox.evaluation.compare.folds import find_folds
from mambavox.evaluation.compare.grid import Grid, Task, Variant, parse_task, parse_variant
from mambavox.training.classify.config import ClassifyConfig


def test_a_cell_has_the_grids_settings_unless_its_task_has_its_own(grid: Callable[..., Grid]) -> None:
    small = Variant("small", "bottleneck", {"bottleneck_dim": 2})
    task = Task("tones", "somewhere", settings={"epochs": 7, "group_column": "speaker"})
    config = grid(variants=(small,), tasks=(task,)).config(small, task, seed=3, learning_rate=0.5)
    assert (config.epochs, config.batch_size, config.group_column) == (7, 4, "speaker")
    assert (config.data, config.seed, config.learning_rate) == ("somewhere", 3, 0.5)
    assert (config.method, config.method_options) == ("bottleneck", {"bottleneck_dim": 2})


def test_every_method_gets_the_same_grid_of_rates(grid: Callable[..., Grid]) -> None:
    variants = (Variant("a", "mambadapter"), Variant("b", "full"), Variant("c", "linear", learning_rate=0.7))
    factors = grid(variants=variants, learning_rates=(), rate_factors=(3, 0.1, 1))
    assert [factors.rates(variant) for variant in variants] == [(5e-4, 5e-3, 1.5e-2), (5e-6, 5e-5, 1.5e-4), (0.7,)]
    absolute = grid(variants=variants, learning_rates=(1e-2, 1e-3))
    assert [absolute.rates(variant) for variant in variants] == [(1e-3, 1e-2), (1e-3, 1e-2), (0.7,)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": ()}, "nothing to compare"),
        ({"seeds": ()}, "nothing to compare"),
        ({"seeds": (1, 1)}, "seeds: 1 is there twice"),
        ({"variants": (Variant("a", "linear"), Variant("a", "full"))}, "variants: a is there twice"),
        ({"tasks": (Task("t", "x"), Task("t", "y"))}, "tasks: t is there twice"),
        ({"variants": (Variant("a", "magic"),)}, "magic"),
        ({"variants": (Variant("a", "bottleneck", {"d_stat": 2}),)}, "a: unknown key 'd_stat'"),
        ({"settings": {"epoch": 3}}, r"every task: unknown key 'epoch'; did you mean epochs"),
        ({"tasks": (Task("t", "x", settings={"seed": 3}),)}, "t: seed is set by the comparison itself"),
        ({"learning_rates": (0.0,)}, "above 0"),
        ({"reference": "c"}, "reference is 'c'"),
    ],
)
def test_mistakes(grid: Callable[..., Grid], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grid(**changes)


def test_variants_are_written_as_words() -> None:
    variant = parse_variant("mambadapter bottleneck-dim=4 init=paper scale_init=0.5")
    assert (variant.method, variant.line) == ("mambadapter", "mambadapter")
    assert variant.options == {"bottleneck_dim": 4, "init": "paper", "scale_init": 0.5}
    assert parse_variant(" linear ").name == "linear"
    with pytest.raises(ConfigError, match="'4' is no setting"):
        parse_variant("lora 4")
    with pytest.raises(ConfigError, match="unknown key 'rank'"):
        parse_variant("lora rank=4")


def test_tasks_are_written_as_words() -> None:
    task = parse_task("esc10='/my data/esc10' epochs=12 folds=1,3")
    assert task == Task("esc10", "/my data/esc10", folds=("1", "3"), settings={"epochs": "12"})
    assert parse_task("hsb=whisper:manifest.jsonl") == Task("hsb", "manifest.jsonl", "whisper")
    assert parse_task("a=b=c") == Task("a", "b=c")
    for wrong in ("esc10", "=x", "esc10="):
        with pytest.raises(ConfigError, match="expected its name and its data"):
            parse_task(wrong)


@pytest.mark.parametrize(
    ("changes", "names", "expected"),
    [
        ({}, None, ["1", "2", "3"]),
        ({}, ("3", "1"), ["3", "1"]),
        ({"split_column": "none"}, None, [None]),
        ({"fold_column": "label"}, None, ["high", "low"]),
    ],
)
def test_folds_of_the_data(folded: str, changes: dict[str, str], names: Any, expected: list[str | None]) -> None:
    folds = find_folds(read_examples(folded), ClassifyConfig(data=folded, **changes), names)
    assert [fold.name for fold in folds] == expected
    assert all(fold.settings == ({} if fold.name is None else {"test_fold": fold.name}) for fold in folds)


def test_data_with_parts_of_their_own_have_no_folds(tones: str) -> None:
    assert [fold.name for fold in find_folds(read_examples(tones), ClassifyConfig(data=tones), None)] == [None]


def test_a_corpus_is_tested_as_its_protocol_says(tmp_path: Path) -> None:
    folder = str(write_esc50(tmp_path / "esc50"))
    examples = read_examples(folder)
    folds = find_folds(examples, ClassifyConfig(data=folder), None)
    assert [(fold.name, fold.settings) for fold in folds] == [(name, {"fold": name}) for name in "12345"]
    assert [fold.name for fold in find_folds(examples, ClassifyConfig(data=folder), ("4",))] == ["4"]
    with pytest.raises(DataError, match="fold is 9"):
        find_folds(examples, ClassifyConfig(data=folder), ("9",))
    by_column = find_folds(examples, ClassifyConfig(data=folder, fold_column="fold"), None)
    assert [fold.settings for fold in by_column] == [{"test_fold": name} for name in "12345"]
