"""What streaming costs: on tiny models, where only the bookkeeping can be checked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hubert import tiny_config
from typer.testing import CliRunner

from mambavox.benchmarks import streaming
from mambavox.benchmarks.streaming import StreamingReport, aged, check_streaming, measure_streaming
from mambavox.cli import app
from mambavox.errors import BackendError, ConfigError
from mambavox.hubert import MambaHubertConfig, MambaHubertModel


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MambaHubertConfig, "nano", tiny_config)


@pytest.fixture
def measure() -> Callable[..., StreamingReport]:
    def run(**changes: Any) -> StreamingReport:
        return measure_streaming(**{"sizes": ["nano"], "histories": (1.0, 3.0), "repeats": 1, **changes})

    return run


def test_the_figures(measure: Callable[..., StreamingReport], tmp_path: Path) -> None:
    report = measure()
    assert [(row.encoder, row.history) for row in report.rows] == [
        (encoder, history) for encoder in streaming.ENCODERS for history in (1.0, 3.0)
    ]
    assert all(timing.median > 0 for row in report.rows for timing in row.timings.values())
    assert set(report.errors) == set(report.parameters) == {f"nano {encoder}" for encoder in streaming.ENCODERS}
    assert max(report.errors.values()) < 1e-5
    sizes = {(row.encoder, row.history): row.state_bytes for row in report.rows}
    assert sizes["mamba", 1.0] == sizes["mamba", 3.0]
    # A frame in 20 samples: 800 a second, 16 channels of keys and values in each of two layers.
    grown = sizes["causal-transformer", 3.0] - sizes["causal-transformer", 1.0]
    assert grown == pytest.approx(2 * 800 * 2 * 2 * 16 * 4 * 9 / 8, rel=0.05)
    report.write(tmp_path)
    rows = json.loads((tmp_path / "streaming.json").read_text())["rows"]
    assert rows[0]["medians"]["step"] == report.rows[0].timings["step"].median
    assert rows[0]["real_time_factors"]["chunk"] == pytest.approx(report.rows[0].timings["chunk"].median / 0.32)
    table = (tmp_path / "streaming.md").read_text()
    assert table.count("| mamba2 |") == 2
    assert (tmp_path / "streaming.png").stat().st_size > 1000


@pytest.mark.parametrize("encoder", ["mamba", "causal-transformer"])
@torch.inference_mode()
def test_an_aged_state_is_as_large_as_one_that_has_lasted(encoder: str) -> None:
    model = MambaHubertModel(tiny_config(encoder)).eval()
    made = aged(model, 1.0)
    real = model.init_streaming_state()
    for piece in torch.randn(1, made.samples[0]).split(5000, dim=1):
        _, real = model.stream(piece, real)
    assert made.samples == real.samples
    assert made.nbytes == pytest.approx(real.nbytes, rel=0.15)
    output, after = model.stream(torch.randn(1, 320), made)
    assert output.lengths is not None
    assert output.lengths.tolist() == [16]
    assert output.last_hidden_state is not None
    assert output.last_hidden_state.isfinite().all()
    assert after.samples == [made.samples[0] + 320]


def test_no_figure_where_streaming_is_wrong(
    measure: Callable[..., StreamingReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = MambaHubertModel.stream

    def forgetful(self: Any, input_values: torch.Tensor, state: Any) -> Any:
        output, after = stream(self, input_values, state)
        return output, replace(after, positions=torch.zeros_like(after.positions))

    monkeypatch.setattr(MambaHubertModel, "stream", forgetful)
    with pytest.raises(BackendError, match=r"nano mamba is wrong: .*no figures"):
        measure()


def test_the_check_gives_the_largest_difference() -> None:
    assert 0 <= check_streaming(MambaHubertModel(tiny_config()).eval(), "tiny") < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": ["huge"]}, "no size 'huge'"),
        ({"encoders": []}, "encoders="),
        ({"histories": (0.0,)}, "at least 1 s"),
        ({"repeats": 0}, "repeats=0"),
        ({"dtype": "int8"}, "no 'int8'"),
        ({"device": "tpu"}, "device=tpu: there is no such device"),
        ({"encoders": ["ext-bimamba"]}, "not causal"),
    ],
)
def test_mistakes(measure: Callable[..., StreamingReport], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        measure(**changes)


def test_the_command(tmp_path: Path) -> None:
    words = ["bench", "streaming", "--shapes", "nano", "--encoders", "mamba", "--histories", "1,2", "--repeats", "1"]
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "| mamba | 2 |" in result.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"streaming.md", "streaming.json", "streaming.png"}
    for wrong in (["--passes", "both"], ["--histories", "long"]):
        assert CliRunner().invoke(app, [*words, *wrong]).exit_code == 2
    assert CliRunner().invoke(app, ["bench", "scan", "--encoders", "mamba"]).exit_code == 2
