"""Two processes learn what one learns that accumulates their batches."""

import os
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from training.devices import pretend_two_gpus
from training.pretraining.conftest import tiny_run
from transformers import TrainingArguments

from mambavox.errors import ConfigError
from mambavox.runs.result import RunResult
from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.pretraining.objective import pretraining_arguments

_NO_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop"), 0.0)


def _together(
    config: PretrainConfig, folder: Path, script: str = "ddp_worker.py", *flags: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run in two processes with the environment that torchrun gives them."""
    file = folder / "together.yaml"
    file.write_text(config.to_yaml())
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    worker = str(Path(__file__).with_name(script))
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(file), *flags],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def test_each_process_leaves_out_other_layers(speech: str, tmp_path: Path) -> None:
    config = tiny_run(speech, tmp_path / "together", steps=4, layerdrop=0.5)
    for process in _together(config, tmp_path):
        assert process.returncode == 0, process.stdout
    assert RunResult.load(tmp_path / "together").details["processes"] == 2


def test_batches_that_processes_cannot_share_are_told(
    speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", 3)
    with pytest.raises(ConfigError, match="2 batches of 2 s, which 3 processes cannot divide evenly"):
        pretraining_arguments(tiny_run(speech, tmp_path / "run"), tmp_path)


def test_a_step_is_a_whole_number_of_batches(speech: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_seconds=5 is 2\.5 times device_batch_seconds=2.*--batch-seconds 4"):
        tiny_run(speech, tmp_path / "run", batch_seconds=5.0)


def test_one_process_takes_one_of_several_gpus(speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_two_gpus(monkeypatch)
    said = StringIO()
    console = Console(file=said, width=200)
    arguments = pretraining_arguments(tiny_run(speech, tmp_path / "run"), tmp_path, console)
    assert arguments.n_gpu == 1 and arguments.parallel_mode.value == "not_parallel"
    assert "one of 2 GPUs is used; all of them: torchrun --nproc-per-node 2" in said.getvalue()
