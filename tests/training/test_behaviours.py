"""What every run does, whatever its task: a new task adds a row to ``TASKS`` and inherits every test.

Killed at any stage and continued, a run ends as an unbroken one, bit by bit; nothing of somebody else is overwritten;
one process at a time writes into a folder; a full disk loses nothing; the seed decides everything; several processes
learn what one learns.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny import save_whisper
from tiny_hubert import tiny_config
from training.pretraining.conftest import TINY
from transformers import Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mambavox.cli.application import app
from mambavox.errors import RunError
from mambavox.hubert import MambaHubertForCTC
from mambavox.runs.config import RunConfig
from mambavox.runs.folder import COMMANDS, RunFolder, task_of
from mambavox.runs.plots import plots_in
from mambavox.runs.result import RunResult
from mambavox.training.configs import CONFIGS
from mambavox.training.engine import RunTrainer
from mambavox.training.pretraining.progress import read_history
from mambavox.training.run import run

TASKS = ("classify", "ctc", "whisper", "pretrain")
WORDS = {"low": 300.0, "high": 2500.0}
Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixteen tones of two kinds, with what every task may ask of them: a label, a transcript, a split."""
    folder, generator = tmp_path_factory.mktemp("sayings"), np.random.default_rng(0)
    rows = []
    for word, frequency in WORDS.items():
        for number, split in enumerate(("train",) * 4 + ("valid", "valid", "test", "test")):
            samples = round(16_000 * (0.5 + 0.05 * number))
            tone = np.sin(2 * np.pi * frequency * np.arange(samples) / 16_000)
            path = f"{word}_{number}.wav"
            soundfile.write(folder / path, 0.3 * tone + 0.01 * generator.standard_normal(samples), 16_000)
            rows.append({"path": path, "label": word, "text": word, "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory, backbone: Callable[[str], str]) -> dict[str, str]:
    """What each task adapts."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=32, conv_dim=(16, 16, 16), conv_kernel=(10, 8, 8), conv_stride=(5, 8, 8), feature_grad_mult=1.0
    )
    MambaHubertForCTC(config).save_pretrained(folder / "mamba")
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True).save_pretrained(folder / "mamba")
    return {
        "classify": backbone("ast"),
        "ctc": str(folder / "mamba"),
        "whisper": str(save_whisper(folder / "whisper")),
    }


@pytest.fixture(scope="module", params=TASKS)
def make(request: pytest.FixtureRequest, data: str, backbones: dict[str, str]) -> Make:
    """Makes a run of a task: eight updates, four checkpoints, random numbers in every one of them."""
    task = request.param
    adapter = {"bottleneck_dim": 4, "d_state": 3, "d_conv": 4, "dropout": 0.2}
    adapts = {"backbone": backbones.get(task), "epochs": 4, "batch_size": 4}
    values: dict[str, Any] = {
        "classify": {**adapts, **adapter, "learning_rate": 0.02},
        "ctc": {**adapts, "language": "en", "learning_rate": 3e-3, "frozen_ratio": 0.3},
        "whisper": {**adapts, **adapter, "where": "both", "language": "ckb", "max_new_tokens": 6},
        "pretrain": {
            **TINY,
            "preset": "mamba-nano",
            "layerdrop": 0.3,
            "steps": 8,
            "save_every": 2,
            "log_every": 2,
            "batch_seconds": 4.0,
            "device_batch_seconds": 2.0,
            "crop_seconds": 1.0,
            "learning_rate": 3e-3,
            "cluster_fraction": 1.0,
        },
    }[task]
    shared = {"data": data, "tensorboard": False, "device": "cpu", "precision": "float32"}
    return lambda output, **changes: CONFIGS[task].from_mapping({**shared, **values, **changes, "output": str(output)})


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(make(folder))
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    """Same figures, learning curve included, and the same weights, bit by bit."""
    first, second = (_timeless(RunResult.load(path).to_mapping()) for path in (folder, whole))
    assert first == second
    weights, others = (_weights(path) for path in (folder, whole))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    assert not RunFolder(folder).checkpoints.exists()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if "seconds" not in key and "an_hour" not in key}
    return value


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found = [folder / name for name in ("adapter_model.safetensors", "model.safetensors")]
    (file,) = [path for path in found if path.is_file()]
    return load_file(file)


def _command(config: RunConfig, *flags: str) -> list[str]:
    """A run as a user types it; the configuration lies beside its folder."""
    file = config.output_path.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    return [*COMMANDS[config.task].split()[1:], "--config", str(file), *flags]


def test_killed_and_continued(make: Make, whole: Path, tmp_path: Path) -> None:
    config = make(tmp_path / "run")
    folder = RunFolder(config.output_path)
    code = f"import torch; torch.set_num_threads(1)\nfrom mambavox.cli import app\napp({_command(config)!r})"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while process.poll() is None and not any(folder.checkpoints.glob("*/checksums.json")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not folder.is_finished
    with pytest.raises(RunError, match=r"holds an unfinished run.*--resume.*--overwrite"):
        run(config)
    run(config, resume=True)
    assert_same(folder.path, whole)


def test_interrupted_in_the_middle_of_an_epoch(
    make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tmp_path / "run")
    step, done = RunTrainer.training_step, 0

    def training_step(self: RunTrainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        if done == 6:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "training_step", training_step)
        result = CliRunner().invoke(app, _command(config))
    assert result.exit_code == 130, result.output
    said = " ".join(result.output.split())
    assert f"interrupted; continue with: {COMMANDS[config.task]} --output {config.output_path} --resume" in said
    words = [*COMMANDS[config.task].split()[1:], "--output", str(config.output_path), "--resume"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert_same(config.output_path, whole)


def test_killed_while_the_result_is_written(
    make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tmp_path / "run")

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "publish", kill)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert not RunFolder(config.output_path).is_finished
    run(config, resume=True)
    assert_same(config.output_path, whole)


def assert_readable(folder: Path) -> None:
    """Every file has the permissions of any new file: safetensors would write weights for their owner alone."""
    (folder / "any").touch()
    usual = (folder / "any").stat().st_mode
    (folder / "any").unlink()
    assert all(path.stat().st_mode == usual for path in folder.rglob("*") if path.is_file())


def test_a_damaged_checkpoint_is_passed_over(
    make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tmp_path / "run")
    folder = RunFolder(config.output_path)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    newest = max(folder.checkpoints.iterdir(), key=lambda path: int(path.name.split("-")[1]))
    assert_readable(newest)
    file = newest / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert CliRunner().invoke(app, _command(config, "--resume")).output.count(newest.name) >= 1
    assert_same(folder.path, whole)
    assert_readable(folder.path)


def test_a_finished_run_is_not_run_again(make: Make, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunTrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    config = make(whole)
    assert run(config, resume=True) == RunResult.load(whole)
    with pytest.raises(RunError, match=r"holds a finished run.*--resume.*--overwrite"):
        run(config)
    with pytest.raises(RunError, match=r"seed was 0 and is 1.*--overwrite"):
        run(make(whole, seed=1), resume=True)
    with pytest.raises(RunError, match="expected one of them"):
        run(config, resume=True, overwrite=True)


def test_the_seed_decides_everything(make: Make, whole: Path, tmp_path: Path) -> None:
    run(make(tmp_path / "run", seed=1))
    others = _weights(tmp_path / "run")
    assert any(not torch.equal(tensor, others[key]) for key, tensor in _weights(whole).items())
    run(make(tmp_path / "run"), overwrite=True)
    assert_same(tmp_path / "run", whole)


@pytest.mark.usefixtures("plots")
def test_a_run_leaves_plots_of_itself(make: Make, tmp_path: Path) -> None:
    config = make(tmp_path / "run", **({"steps": 2} if make(tmp_path).task == "pretrain" else {"epochs": 1}))
    run(config)
    last = {"classify": ["confusion.png"], "ctc": ["errors.png"], "whisper": ["errors.png"], "pretrain": []}
    plots = ["curve.png", *last[config.task]]
    assert plots_in(tmp_path / "run") == plots
    card = (tmp_path / "run" / "README.md").read_text()
    assert all(f"]({name})" in card for name in plots)


def test_killed_while_an_old_run_is_removed(
    make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tmp_path / "run", seed=1)
    run(config, keep_checkpoints=True)
    folder, remove = RunFolder(config.output_path), shutil.rmtree

    def kill(path: Path, **options: Any) -> None:
        torn = next(Path(path).glob("checkpoint-*/*.safetensors"), None)
        if torn is None:  # of something else
            return remove(path, **options)
        torn.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            run(make(tmp_path / "run"), overwrite=True)
    assert not folder.is_finished and folder.last_checkpoint() is None
    with pytest.raises(RunError, match=r"unfinished run.*--overwrite"):
        run(make(tmp_path / "run"))
    run(make(tmp_path / "run"), overwrite=True)
    assert_same(folder.path, whole)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(make: Make, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("mine")
    with pytest.raises(RunError, match=r"is not empty and holds no run.*--output"):
        run(make(tmp_path / "run"), overwrite=overwrite)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["README.md"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"file: is a file; expected a folder"):
        run(make(tmp_path / "file"), overwrite=overwrite)
    with pytest.raises(RunError, match=r"cannot be written into.*--output"):
        run(make("/proc/nothing/run"), overwrite=overwrite)


def test_a_run_of_another_task_is_told(make: Make, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    own = task_of(whole)
    assert own in COMMANDS
    other = "pretrain" if own != "pretrain" else "classify"
    result = CliRunner().invoke(app, [*COMMANDS[other].split()[1:], "--output", str(tmp_path / "run"), "--resume"])
    assert result.exit_code == 1, result.output
    assert COMMANDS[own] in " ".join(result.output.split())
    (tmp_path / "run" / "run.yaml").write_text("backbone: nano-ast\n")
    with pytest.raises(RunError, match="says task: None; expected one of"):
        run(make(tmp_path / "run"), resume=True)


def test_one_process_at_a_time(make: Make, whole: Path, tmp_path: Path) -> None:
    config = make(tmp_path / "run")
    hold = (
        "import sys, time\nfrom mambavox.runs.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked():\n    print('held', flush=True)\n    time.sleep(300)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(config.output_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match=rf"is being written by process {holder.pid} on "):
                run(config, **options)
    finally:
        holder.kill()
        holder.wait()
    run(config)
    assert_same(config.output_path, whole)


def test_a_full_disk_keeps_the_last_checkpoint(
    make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tmp_path / "run")
    save = RunTrainer._save_optimizer_and_scheduler

    def fails_later(self: RunTrainer, output_dir: str) -> None:
        if output_dir.endswith("checkpoint-6"):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(RunTrainer, "_save_optimizer_and_scheduler", fails_later)
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(RunError, match=r"disk is full.*checkpoint-4 is kept.*--resume"):
            run(config)
    run(config, resume=True)
    assert_same(config.output_path, whole)


def test_two_processes_learn_what_one_learns(make: Make, tmp_path: Path) -> None:
    config = make(tmp_path / "one")
    still: dict[str, Any]
    if config.task == "pretrain":
        still = dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop"), 0.0)
        one = make(tmp_path / "one", **still)
        two = make(tmp_path / "two", **still)
    else:
        # Each process draws its own dropout, and of a mean over frames or tokens each batch has its own number.
        still = {"batch_size": 2, "epochs": 2, "learning_rate": 1e-3}
        still |= {"mask_prob": 0.0, "mask_channel_prob": 0.0} if config.task == "ctc" else {"dropout": 0.0}
        one = make(tmp_path / "one", **still, gradient_accumulation=2)
        two = make(tmp_path / "two", **still)
    alone = run(one)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mambavox"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *_command(two)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    together = RunResult.load(tmp_path / "two")
    weights, others = (_weights(tmp_path / name) for name in ("one", "two"))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert together.recordings == alone.recordings and together.scores.keys() == alone.scores.keys()
    if config.task == "pretrain":
        histories = [read_history(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
        for row, other in zip(*histories, strict=True):
            for name in row.keys() - {"hours_an_hour", "eval_hours_an_hour", "eval_seconds"}:
                assert row[name] == pytest.approx(other[name], rel=1e-3), name
    assert done.stdout.count("saved in ") == 1, "the first process speaks"
