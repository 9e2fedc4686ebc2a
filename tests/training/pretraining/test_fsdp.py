"""Two processes that share out the weights learn what one process does that has them all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.pretraining.conftest import tiny_run
from training.pretraining.test_processes import _NO_DROPOUT, _together
from transformers import AutoModelForPreTraining

from mambavox.errors import ConfigError
from mambavox.runs.result import RunResult
from mambavox.training.pretraining.objective import pretraining_arguments
from mambavox.training.pretraining.progress import read_history
from mambavox.training.run import run as train

# What `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_state_dict_type FULL_STATE_DICT` sets.
_FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def _assert_close(folder: Path, other: Path) -> None:
    weights, others = (load_file(path / "model.safetensors") for path in (folder, other))
    assert weights.keys() == others.keys()
    for key, expected in weights.items():
        torch.testing.assert_close(others[key], expected, rtol=1e-5, atol=1e-5, msg=key)


def test_two_processes_learn_what_one_does(speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three batches of held-back recordings for two processes: none may wait for the other.
    options: dict[str, Any] = {**_NO_DROPOUT, "steps": 4, "log_every": 1, "valid_fraction": 0.3}
    alone = tiny_run(speech, tmp_path / "alone", **options)
    result = train(alone)
    for name, value in _FSDP.items():
        monkeypatch.setenv(name, value)
    together = alone.replace(output=str(tmp_path / "together"))
    for process in _together(together, tmp_path, "fsdp_worker.py"):
        assert process.returncode == 0, process.stdout
    _assert_close(tmp_path / "alone", tmp_path / "together")
    found = RunResult.load(tmp_path / "together")
    assert (found.details["processes"], found.parameters) == (2, result.parameters)
    assert found.scores["valid"]["prediction_loss"] == pytest.approx(
        result.scores["valid"]["prediction_loss"], rel=1e-5
    )
    histories = [read_history(tmp_path / name / "metrics.jsonl") for name in ("alone", "together")]
    norms = [[line["grad_norm"] for line in history if "grad_norm" in line] for history in histories]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and len(norms[0]) >= 4
    config = json.loads((tmp_path / "together" / "config.json").read_text())
    assert config["architectures"] == ["MambaHubertForPreTraining"]
    assert AutoModelForPreTraining.from_pretrained(tmp_path / "together").num_parameters() == result.parameters["whole"]

    shutil.copytree(tmp_path / "together", tmp_path / "whole")
    (tmp_path / "together" / "metrics.json").unlink()
    (tmp_path / "together" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "together" / "checkpoints" / "checkpoint-4")
    for process in _together(together, tmp_path, "fsdp_worker.py", "--resume"):
        assert process.returncode == 0, process.stdout
    _assert_close(tmp_path / "whole", tmp_path / "together")
    assert len(read_history(tmp_path / "together" / "metrics.jsonl")) == len(histories[1])


@pytest.mark.parametrize(
    ("version", "layerdrop", "message"), [("1", 0.0, "--fsdp_version 2"), ("2", 0.3, "layerdrop=0.3.*--layerdrop 0")]
)
def test_what_cannot_be_shared_out_is_told(
    speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, layerdrop: float, message: str
) -> None:
    for name, value in {**_FSDP, "FSDP_VERSION": version}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        pretraining_arguments(tiny_run(speech, tmp_path / "run", layerdrop=layerdrop), tmp_path)
