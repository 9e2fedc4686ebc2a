"""The benchmark of speed_up: what it compares, writes and refuses. No timing is judged here."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from mambavox.benchmarks import measure, speed_up
from mambavox.benchmarks.speed_up import measure_speed_up
from mambavox.cli import app
from mambavox.errors import BackendError, ConfigError
from mambavox.nn.speed_up import ScanMambaMixer


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(speed_up, "SIZES", {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 30})


def test_the_command_times_both_models_and_writes_two_files(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    flags = ["--threads", "1", "--repeats", "2", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, ["bench", "speed-up", *flags])
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == before
    assert "# speed_up" in result.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"speed_up.md", "speed_up.json"}
    figures = json.loads((tmp_path / "speed_up.json").read_text())
    assert figures["facts"]["threads"] == 1
    assert figures["tokens"] == 512
    assert {(row["pass"], row["model"]) for row in figures["rows"]} == {
        (name, model) for name in ("read_prompt", "step") for model in ("mambavox.speed_up", "transformers")
    }
    assert all(len(row["seconds"]) == 2 for row in figures["rows"])
    assert all(0 < error <= 1e-5 for errors in figures["errors"].values() for error in errors.values())
    medians = {(row["pass"], row["model"]): row["median"] for row in figures["rows"]}
    assert figures["ratios"]["step"] == pytest.approx(
        medians["step", "transformers"] / medians["step", "mambavox.speed_up"]
    )


@pytest.mark.parametrize("time", ["prompt", "token after it"])
def test_wrong_logits_stop_everything_before_the_first_figure(monkeypatch: pytest.MonkeyPatch, time: str) -> None:
    real = ScanMambaMixer.forward

    def wrong(self: nn.Module, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        output = real(self, hidden_states, *args, **kwargs)
        return output * 1.5 if (hidden_states.shape[1] == 1) == (time != "prompt") else output

    monkeypatch.setattr(ScanMambaMixer, "forward", wrong)
    monkeypatch.setattr(speed_up, "interleave", lambda *_: pytest.fail("timed"))
    with pytest.raises(BackendError, match=f"logits of the .*{time} differ .* no figures"):
        measure_speed_up(threads=1, repeats=1, tokens=9)


@pytest.mark.parametrize("option", ["threads", "repeats", "tokens"])
def test_mistakes_are_told(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}=0; expected at least 1"):
        measure_speed_up(**{option: 0})
