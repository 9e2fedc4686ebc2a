"""What adapters cost: on tiny hosts, where only the bookkeeping can be checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mambavox.benchmarks import latency
from mambavox.benchmarks.latency import SHAPES, Adapted, LatencyReport, Load, measure_latency
from mambavox.cli import app
from mambavox.errors import ConfigError
from mambavox.training.front_end import patched_frames

LOAD = Load(seconds=(0.2, 0.5), train_seconds=0.3, batch_size=2, repeats=1)


@pytest.fixture
def measure(backbone: Callable[[str], str]) -> Callable[..., LatencyReport]:
    """Measure a tiny host of a family."""

    def run(family: str, **changes: Any) -> LatencyReport:
        return measure_latency([backbone(family)], load=LOAD, **{"budget": 700, "memory": False, **changes})

    return run


def test_the_figures_of_a_host(measure: Callable[..., LatencyReport]) -> None:
    report = measure("ast")
    (figures,) = report.hosts
    assert list(figures.inference) == [0.2, 0.5]
    names = set(figures.parameters)
    assert {name.split()[0] for name in names} == {"linear", "lora", "bottleneck", "conformer", "mambadapter"}
    for timings in (*figures.inference.values(), figures.training):
        assert timings.keys() == names
        assert all(timing.median > 0 for timing in timings.values())
    counts = [count for name, count in figures.parameters.items() if name != "linear"]
    assert all(400 <= count <= 1_000 for count in counts)
    table = report.markdown()
    assert "| linear | 0 | " in table
    assert table.count("(1.00x)") == 3


@pytest.mark.parametrize(("family", "lengths"), [("whisper", [1.0]), ("hubert", [0.2, 0.5])])
def test_lengths_of_a_host(measure: Callable[..., LatencyReport], family: str, lengths: list[float]) -> None:
    (figures,) = measure(family, methods=[Adapted("mine", "bottleneck", {"bottleneck_dim": 3})]).hosts
    assert list(figures.inference) == lengths
    assert list(figures.parameters) == ["linear", "mine"]


def test_the_clips_are_as_long_as_said(backbone: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[torch.Size] = []
    make = latency._inputs

    def inputs(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        made = make(*args, **kwargs)
        heard.append(made["input_values"].shape)
        return made

    monkeypatch.setattr(latency, "_inputs", inputs)
    measure_latency([backbone("ast")], [Adapted("linear", "linear", {})], load=LOAD, memory=False)
    config = latency._host_config(backbone("ast"))
    lengths = [patched_frames(config, frames) for frames in (20, 50, 30)]
    assert heard == [(1, lengths[0], 32), (1, lengths[1], 32), (2, lengths[2], 32)]


def test_full_fine_tuning_does_not_touch_the_others(backbone: Callable[[str], str]) -> None:
    from transformers import AutoModelForAudioClassification

    host = AutoModelForAudioClassification.from_config(latency._host_config(backbone("ast")))
    frozen = latency._adapt(host, Adapted("lora", "lora", {"r": 2}))
    full = latency._adapt(host, Adapted("full", "full", {}))
    shared = {id(parameter) for parameter in host.parameters()}
    assert sum(id(parameter) in shared for parameter in frozen.parameters()) > 20
    assert not any(id(parameter) in shared for parameter in full.parameters())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
def test_memory_of_a_step(measure: Callable[..., LatencyReport]) -> None:
    report = measure("ast", methods=[Adapted("linear", "linear", {})], memory=True)
    (peak,) = report.hosts[0].peaks.values()
    assert isinstance(peak, int), peak
    assert 0 <= peak < 100 << 20
    assert " MiB |" in report.markdown()


@pytest.mark.parametrize("name", SHAPES)
def test_the_named_hosts_have_the_released_models_shapes(name: str) -> None:
    from transformers import AutoModelForAudioClassification

    with torch.device("meta"):
        model = AutoModelForAudioClassification.from_config(latency._host_config(name))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx({"ast-base": 86.2, "whisper-small": 88.4}[name], abs=0.1)


@pytest.mark.parametrize(
    "changes", [{"repeats": 0}, {"batch_size": 0}, {"seconds": ()}, {"seconds": (0.0,)}, {"device": "tpu"}]
)
def test_mistakes(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        Load(**changes)


def test_the_command(backbone: Callable[[str], str], tmp_path: Path) -> None:
    words = ["compare", "--preset", "latency", "--backbone", backbone("ast"), "--output", str(tmp_path), "--no-memory"]
    words += [
        "--methods",
        "lora r=2",
        "--repeats",
        "1",
        "--seconds",
        "0.3",
        "--train-seconds",
        "0.3",
        "--batch-size",
        "1",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "| lora r=2 |" in result.stdout
    assert json.loads((tmp_path / "latency.json").read_text())["load"]["seconds"] == [0.3]
    assert (tmp_path / "latency.md").read_text() in result.stdout
    for wrong in (["--epochs", "3"], ["--repeats", "many"], ["--seeds", "2"]):
        result = CliRunner().invoke(app, [*words, *wrong])
        assert result.exit_code == 2
        assert "latency" in result.stderr
