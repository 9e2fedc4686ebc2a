"""What training costs by length: on tiny models, where only the bookkeeping can be checked."""

import json

import pytest
from typer.testing import CliRunner

from mambavox.benchmarks import training
from mambavox.benchmarks.training import PEER, measure_training
from mambavox.cli import app
from mambavox.errors import ConfigError


def test_passes_of_ours_and_of_transformers(tmp_path):
    report = measure_training("nano", encoders=("mamba", PEER), lengths=(0.5,), threads=1, repeats=1)
    assert [(row.encoder, row.length) for row in report.rows] == [("mamba", 0.5), (PEER, 0.5)]
    assert all(row.timing is not None and row.timing.median > 0 and row.bytes >= 0 for row in report.rows)
    report.write(tmp_path)
    rows = json.loads((tmp_path / "training.json").read_text())["rows"]
    assert rows[1]["audio_seconds_a_second"] == pytest.approx(0.5 / rows[1]["timing"]["seconds"][0])
    assert (tmp_path / "training.png").stat().st_size > 1000
    assert "| 0.5 | 1.00 |" in (tmp_path / "training.md").read_text()


def test_the_peer_is_our_transformer():
    ours, peer = training._model("nano", "transformer"), training._model("nano", PEER)
    assert sum(item.numel() for item in ours.parameters()) == sum(item.numel() for item in peer.parameters())


def test_a_pass_that_fails_costs_its_own_figure_only(monkeypatch, tmp_path):
    def apart(task):
        return "out of memory" if task["length"] > 1 else (0.5, 1 << 20)

    monkeypatch.setattr(training, "_apart", apart)
    report = measure_training("nano", encoders=("mamba",), lengths=(1.0, 2.0), repeats=2)
    assert report.rows[0].speed == 2.0 and report.rows[1].timing is None
    report.write(tmp_path)
    assert "| 2 | out of memory |" in report.markdown()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "huge"}, "no size 'huge'"),
        ({"lengths": ()}, "at least one of each"),
        ({"dtype": "float16"}, "no 'float16'"),
        ({"device": "tpu"}, "device=tpu: there is no such device"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ConfigError, match=message):
        measure_training(**{"size": "nano", **changes})


def test_on_the_command_line():
    runner = CliRunner()
    result = runner.invoke(app, ["bench", "training", "--shapes", "nano", "--lengths", "short"])
    assert result.exit_code and "expected seconds" in result.output
    result = runner.invoke(app, ["bench", "scan", "--lengths", "10"])
    assert result.exit_code and "No such option" in result.output
