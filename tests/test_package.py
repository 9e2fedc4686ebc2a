import subprocess
import sys

import peft
import pytest

import mambavox
from mambavox import assets
from mambavox.errors import ConfigError


def test_importing_the_package_registers_its_methods_with_peft():
    assert {"MAMBADAPTER", "BOTTLENECK"} <= {member.value for member in peft.PeftType}
    assert mambavox.MambAdapterConfig().peft_type == "MAMBADAPTER"


def test_optional_packages_are_not_imported():
    optional = ("espeakng_loader", "mamba_ssm", "mambapy", "torchcodec", "gradio")
    code = f"import sys, mambavox; print([name for name in {optional} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_classifier_is_found_at_the_top():
    assert mambavox.AudioClassifier.__name__ == "AudioClassifier"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mambavox.nothing  # noqa: B018


def test_an_unknown_embedded_model_lists_the_known():
    with pytest.raises(ConfigError, match="nano-ast"):
        assets.path("mega-ast")
