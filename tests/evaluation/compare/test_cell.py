"""Cells: what their keys depend on, and results that nobody damaged."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from evaluation.compare.conftest import imagined_result

from mambavox.data import read_examples
from mambavox.errors import RunError
from mambavox.evaluation.compare import cell as cell_module
from mambavox.evaluation.compare.cell import Cell, CellStore
from mambavox.evaluation.compare.fingerprint import backbone_fingerprint, data_fingerprint
from mambavox.runs.fields import option
from mambavox.training.classify.config import ClassifyConfig

CONFIG = ClassifyConfig(data="x", method="lora", method_options={"r": 2}, learning_rate=1e-3, seed=7, test_fold="2")


def make(**changes: Any) -> Cell:
    return Cell(
        **{"task": "my task", "fold": "2", "config": CONFIG, "data_fingerprint": "d", **changes},
        **{key: value for key, value in {"backbone_fingerprint": "b"}.items() if key not in changes},
    )


def test_a_key_is_readable() -> None:
    assert make().key.startswith("my_task-lora-r=2-lr0.001-fold2-seed7-")


@pytest.mark.parametrize(
    "changes",
    [
        {"config": CONFIG.replace(seed=8)},
        {"config": CONFIG.replace(method_options={"r": 3})},
        {"config": CONFIG.replace(epochs=21)},
        {"config": CONFIG.replace(test_fold="3")},
        {"data_fingerprint": "e"},
        {"backbone_fingerprint": "c"},
    ],
)
def test_whatever_determines_the_result_changes_the_key(changes: dict[str, Any]) -> None:
    assert make(**changes).key.rsplit("-", 1)[1] != make().key.rsplit("-", 1)[1]


def test_the_packages_version_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make().key
    monkeypatch.setattr(cell_module, "__version__", "99")
    assert make().key != before


@pytest.mark.parametrize("changes", [{"data": "y"}, {"output": "z"}, {"backbone": "moved"}, {"num_workers": 2}])
def test_where_things_lie_does_not(changes: dict[str, Any]) -> None:
    assert make(config=CONFIG.replace(**changes)).key == make().key


def test_a_setting_that_is_added_loses_no_cell(tmp_path: Path) -> None:
    """The file of a cell that was computed before the setting was there is found, and is still that of this cell."""

    @dataclass(frozen=True, kw_only=True)
    class Later(ClassifyConfig):
        added: int = option(1, "A setting that is new.", group="Data")

    now, later = make(), make(config=Later.from_mapping(CONFIG.to_mapping()))
    assert later.key == now.key != make(config=later.config.replace(added=2)).key
    store = CellStore(tmp_path)
    store.write(imagined_result(now, [True]))
    assert store.read(later) is not None


def test_a_default_that_was_changed_is_told(tmp_path: Path) -> None:
    store, cell = CellStore(tmp_path), make()
    result = imagined_result(cell, [True])
    store.write(replace(result, config={**result.config, "epochs": cell.config.epochs + 1}))
    with pytest.raises(
        RunError, match=f"was computed with epochs={cell.config.epochs + 1}; the cell is computed again"
    ):
        store.read(cell)


def test_a_cell_survives_json() -> None:
    assert Cell.from_mapping(json.loads(json.dumps(make().to_mapping()))) == make()


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    store, cell = CellStore(tmp_path), make()
    result = imagined_result(cell, [True, False])
    assert store.read(cell) is None
    store.write_failure(result.key, "no luck")
    assert store.failure(result.key) == "no luck"
    store.write(result)
    assert store.read(cell) == result
    assert store.failure(result.key) is None
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{result.key}.json"]


def _halve(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[: len(text) // 2])


def _improve(path: Path) -> None:
    path.write_text(path.read_text().replace("[[1.0, 0.0]", "[[1.0, 1.0]"))


def _swap(path: Path) -> None:
    store = CellStore(path.parents[1])
    other = imagined_result(make(task="other"), [True, True])
    store.write(other)
    shutil.copy(store.path(other.key), path)


@pytest.mark.parametrize(
    "damage", [_halve, _improve, _swap, lambda path: path.write_text("{}"), lambda p: p.write_text("")]
)
def test_a_damaged_result_is_named_and_not_believed(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store, cell = CellStore(tmp_path), make()
    result = imagined_result(cell, [True, False])
    store.write(result)
    damage(store.path(result.key))
    with pytest.raises(RunError, match=rf"{result.key}.json: is damaged"):
        store.read(cell)


def test_the_datas_fingerprint(tones: str, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return data_fingerprint(read_examples(folder), str(folder))

    copy = tmp_path / "elsewhere"
    shutil.copytree(tones, copy)
    original = fingerprint(Path(tones))
    assert fingerprint(copy) == original
    assert fingerprint(copy / "manifest.jsonl") == original
    content = (copy / "low_1.wav").read_bytes()
    (copy / "low_1.wav").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(copy) != original
    (copy / "low_1.wav").write_bytes(content)
    assert fingerprint(copy) == original
    manifest = (copy / "manifest.jsonl").read_text()
    (copy / "manifest.jsonl").write_text(manifest.replace('"split": "train"', '"split": "valid"', 1))
    assert fingerprint(copy) != original


def test_the_backbones_fingerprint(backbone: Callable[[str], str], tmp_path: Path) -> None:
    original = backbone_fingerprint(backbone("ast"))
    copy = tmp_path / "copy"
    shutil.copytree(backbone("ast"), copy)
    assert backbone_fingerprint(str(copy)) == original
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert backbone_fingerprint(str(copy)) != original
