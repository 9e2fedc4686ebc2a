import subprocess
import sys

import pytest

import mambavox
from mambavox import assets
from mambavox.errors import ConfigError


@pytest.mark.parametrize("order", ["mambavox, peft", "peft, mambavox", "mambavox, transformers, peft"])
def test_importing_the_package_makes_its_methods_known_to_peft(order):
    code = f"import {order}; print('MAMBADAPTER' in list(peft.PeftType), 'BOTTLENECK' in list(peft.PeftType))"
    assert subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).strip() == "True True"


def test_importing_the_package_imports_nothing_heavy_or_optional():
    unwanted = ("torch", "peft", "transformers", "espeakng_loader", "mamba_ssm", "mambapy", "torchcodec", "gradio")
    code = f"import sys, mambavox; print([name for name in {unwanted} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_scan_needs_neither_peft_nor_transformers():
    code = "import sys, mambavox.nn; print([name for name in ('peft', 'transformers') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_public_names_are_found_at_the_top():
    assert mambavox.MambAdapterConfig().peft_type == "MAMBADAPTER"
    assert mambavox.BottleneckConfig().peft_type == "BOTTLENECK"
    assert mambavox.AudioClassifier.__name__ == "AudioClassifier"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mambavox.nothing  # noqa: B018


def test_an_unknown_embedded_model_lists_the_known():
    with pytest.raises(ConfigError, match="nano-ast"):
        assets.path("mega-ast")


@pytest.mark.parametrize("name", ["./runs/ctc", "/nowhere", "~/nowhere/at-all", "runs/ctc/best"])
def test_a_folder_that_is_not_there_is_no_name_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^{name}: there is no such folder; .* nano-ast"):
        assets.locate(name)


def test_folders_and_names_on_the_hub_are_located(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs" / "ctc" / "best").mkdir(parents=True)
    for name in ("runs/ctc/best", "./runs/ctc", str(tmp_path / "runs"), "facebook/hubert-base-ls960", "runs/later"):
        assert assets.locate(name) == name
    assert assets.locate("~/runs") == str(tmp_path / "runs")
    assert assets.locate("nano-ast") == assets.path("nano-ast")
