"""The recipe for the real recordings: each set is divided as its protocol says."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mambavox.data import read_examples
from mambavox.evaluation.compare.folds import find_folds
from mambavox.training.classify.config import ClassifyConfig


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The recipe as a module."""
    path = Path(__file__).parents[2] / "recipes" / "real_recordings.py"
    spec = importlib.util.spec_from_file_location("real_recordings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "folds"),
    [
        ("fsdd", [None]),
        ("arabic_speech_commands", [None]),
        ("esc10", ["1", "2", "3", "4"]),
        ("coffee_intents", ["1", "2", "3", "4"]),
    ],
)
def test_the_folds_of_each_set(
    recipe: ModuleType, recordings: Path, tmp_path: Path, name: str, folds: list[str | None]
) -> None:
    task = recipe.make_task(name, recordings, tmp_path)
    found = find_folds(read_examples(task.data), ClassifyConfig(data=task.data, **task.settings), None)
    assert [fold.name for fold in found] == folds
