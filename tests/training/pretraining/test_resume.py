"""A run that is killed and continued ends as an unbroken one does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.pretraining.conftest import tiny_run

from mambavox.errors import RunError
from mambavox.runs.folder import RunFolder
from mambavox.runs.result import RunResult
from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.pretraining.progress import read_history
from mambavox.training.run import run as train

_OF_THE_CLOCK = ("hours_an_hour", "eval_hours_an_hour", "eval_seconds", "seconds")


def _timeless(figures: Any) -> Any:
    return {key: value for key, value in figures.items() if key not in _OF_THE_CLOCK}


def assert_same(broken: Path, whole: Path) -> None:
    """Same figures, those along the way included, and the same weights, bit by bit."""
    first, second = (RunResult.load(folder).to_mapping() for folder in (broken, whole))
    notes = [result.pop("notes") for result in (first, second)]
    assert all(len(told) == len(notes[0]) for told in notes)  # by the column of files, by the names of shards
    scores = [figures.pop("scores") for figures in (first, second)]
    for split in ("train", "valid"):
        assert _timeless(scores[0][split]) == _timeless(scores[1][split])
    assert _timeless(first) == _timeless(second)
    histories = [[_timeless(line) for line in read_history(folder / "metrics.jsonl")] for folder in (broken, whole)]
    assert histories[0] == histories[1]
    weights, others = (load_file(folder / "model.safetensors") for folder in (broken, whole))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)


def _kill_after(config: PretrainConfig, checkpoint: str, log: Path, *flags: str) -> None:
    """Start a run in another process, and kill it once a checkpoint is there."""
    file = log.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    command = [sys.executable, "-m", "mambavox", "pretrain", "--config", str(file), *flags]
    state = RunFolder(config.output_path).checkpoints / checkpoint / "trainer_state.json"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        while process.poll() is None and not state.is_file():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, log.read_text()


def test_killed_twice(speech: str, tmp_path: Path) -> None:
    config = tiny_run(speech, tmp_path / "broken", steps=80, save_every=10, log_every=10, num_workers=1)
    _kill_after(config, "checkpoint-20", tmp_path / "first")
    _kill_after(config, "checkpoint-40", tmp_path / "second", "--resume")
    assert not RunFolder(config.output_path).is_finished
    train(config, resume=True)
    # Loading in this process, and another cache, change nothing.
    train(config.replace(output=str(tmp_path / "whole"), num_workers=0, cache_gb=0.0))
    assert_same(tmp_path / "broken", tmp_path / "whole")
    assert not RunFolder(config.output_path).checkpoints.exists()


def test_killed_while_the_configuration_is_written(speech: str, tmp_path: Path) -> None:
    config = tiny_run(speech, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.yaml.partial").write_text("da")
    RunFolder(config.output_path).check(config, resume=False, overwrite=False)
    (tmp_path / "run" / "mine.txt").write_text("not ours")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        RunFolder(config.output_path).check(config, resume=False, overwrite=True)


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n" + '{"step": 2, "lo')
    assert read_history(path) == [{"step": 1, "loss": 2.0}]
    shutil.rmtree(tmp_path)
