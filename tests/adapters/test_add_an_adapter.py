"""The page that shows how to add an adapter: its code is what these tests run."""

import copy
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from adapters.conftest import HOSTS, logits, make_hubert, train_step, trainable
from adapters.test_lengths import check_rows
from peft import PeftModel, get_peft_model

from mambavox.adapters import METHODS, Method, apply_method

PAGE = Path(__file__).parents[2] / "docs" / "add-an-adapter.md"
ADAPTER, USE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The adapter's code as a module, which can be imported once in a process, as any registration."""
    path = tmp_path_factory.mktemp("page") / "gru_adapter.py"
    path.write_text(ADAPTER, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("gru_adapter", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gru_adapter"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gru_adapter"]


def test_it_is_30_lines() -> None:
    assert len([line for line in ADAPTER.splitlines() if line.strip()]) <= 30


def test_the_lines_that_use_it_run(page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {**vars(page)}
    exec(compile(USE, str(PAGE), "exec"), names)
    saved = {name: p for name, p in names["model"].named_parameters() if ".gruadapter_" in name}
    loaded = dict(names["again"].named_parameters())
    assert saved and all(torch.equal(parameter, loaded[name]) for name, parameter in saved.items())
    assert "import mambavox" in (tmp_path / "gru-adapter" / "README.md").read_text()


def test_it_behaves_as_the_others_do(page: ModuleType, tmp_path: Path) -> None:
    host = HOSTS[0]
    config = page.GRUAdapterConfig(bottleneck_dim=4, placement="both", gate="token", modules_to_save=["classifier"])
    model = get_peft_model(host.model(), config).eval()
    expected = logits(host.model(), host.inputs())
    assert torch.equal(logits(model, host.inputs()), expected)
    train_step(model, host.inputs(), steps=2)
    adapted = logits(model, host.inputs())
    assert not torch.equal(adapted, expected)
    assert torch.equal(logits(copy.deepcopy(model), host.inputs()), adapted)
    model.save_pretrained(tmp_path)
    # Trainable, because torch's GRU rounds otherwise where its weights are frozen.
    loaded = PeftModel.from_pretrained(host.model(), tmp_path, adapter_name="other", is_trainable=True)
    assert torch.equal(logits(loaded, host.inputs()), adapted)
    with model.disable_adapter():
        assert torch.equal(logits(model, host.inputs()), expected)


def test_its_rows_do_not_see_padding(page: ModuleType) -> None:
    model = get_peft_model(make_hubert().base_model, page.GRUAdapterConfig(bottleneck_dim=4)).eval()
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    check_rows(model)


def test_as_a_method_by_name(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    line = re.search(r"`(METHODS\[.*?\) ?)` \(both from", PAGE.read_text(encoding="utf-8").replace("\n", " "))
    assert line is not None
    monkeypatch.setitem(METHODS, "gru", None)
    exec(line[1], {**vars(page), "METHODS": METHODS, "Method": Method})
    model = apply_method(HOSTS[0].model(), "gru", {"num_layers": 2})
    assert any("gru.weight_ih_l1" in name for name in trainable(model))
