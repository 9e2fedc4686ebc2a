"""``mambavox serve`` and ``mambavox bench serve`` as a user types them."""

import json
import subprocess
import sys

import pytest
import soundfile
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mambavox.asr.tokenizer import train_tokenizer
from mambavox.cli import app
from mambavox.hubert import MambaHubertForCTC


def run(*arguments, code=0, env=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def save(folder, encoder="mamba", normalize=False):
    tokenizer = train_tokenizer(["a b"])
    front = {"conv_dim": (8, 8, 8), "conv_kernel": (10, 8, 8), "conv_stride": (5, 8, 8)}
    model = MambaHubertForCTC(tiny_config(encoder, vocab_size=len(tokenizer), pad_token_id=0, **front))
    model.lm_head.weight.data.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True).save_pretrained(folder)
    return folder


def test_without_the_extra_it_is_named():
    # In a process of its own: modules that were imported without their extra would stay so for the tests behind.
    code = "import sys; sys.modules.update(starlette=None, uvicorn=None); from mambavox.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--model", "anything"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "pip install 'mambavox[serve]'" in done.stderr


@pytest.fixture
def _installed():
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    pytest.importorskip("starlette", reason="the extra serve is not installed")


@pytest.mark.usefixtures("_installed")
class TestServe:
    def test_models_that_cannot_be_served_are_told(self, tmp_path):
        assert "holds no tokenizer" in run("serve", "--model", tmp_path, code=1)
        save(tmp_path / "whole", "ext-bimamba")
        assert "not causal" in run("serve", "--model", tmp_path / "whole", code=1)
        save(tmp_path / "normal", normalize=True)
        assert "do_normalize" in run("serve", "--model", tmp_path / "normal", code=1)

    def test_without_a_model_the_embedded_one_is_taken(self, monkeypatch):
        monkeypatch.setattr("mambavox.assets.path", lambda name: f"/no/{name}")
        assert "/no/nano-mamba-ctc" in run("serve", code=1)

    def test_other_machines_need_a_token(self, tmp_path):
        assert "expected a token as well" in run("serve", "--model", tmp_path, "--host", "0.0.0.0", code=1)
        # With one from the environment it is the model that is missing.
        message = run("serve", "--model", tmp_path, "--host", "0.0.0.0", code=1, env={"MAMBAVOX_TOKEN": "secret"})
        assert "holds no tokenizer" in message

    def test_a_block_that_does_not_fit(self, tmp_path):
        assert "longest_piece" in run("serve", "--model", tmp_path, "--block-seconds", 2, code=1)


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
def test_many_streams_of_real_recordings_beside_a_hostile_client(recordings, tmp_path):
    model = save(tmp_path / "model")
    clips = tmp_path / "clips"
    clips.mkdir()
    for number, path in enumerate(sorted((recordings / "librispeech_subset").rglob("*.flac"))[:3]):
        samples, rate = soundfile.read(path)
        soundfile.write(clips / f"{number}.wav", samples[: 2 * rate], rate)
    output = run(
        "bench", "serve", "--data", clips, "--model", model, "--streams", 6, "--seconds", 2,
        "--output", tmp_path / "bench",
    )  # fmt: skip
    report = json.loads((tmp_path / "bench" / "serve.json").read_text())
    assert [row["name"] for row in report["rounds"]] == ["alone", "with a hostile client"]
    for row in report["rounds"]:
        assert (row["streams"], row["dropped"], row["as_whole"]) == (6, 0, 6)
        assert row["words"] > 20
        median, most, longest = row["word_delays"]
        assert 0 < median <= most <= longest
        assert row["server_cores"] > 0
    assert set(report["rounds"][1]["attacks"]) >= {"huge", "garbage"}
    assert "| with a hostile client | 6 | 0 | 6 |" in output


def test_bench_serve_checks_its_options(tmp_path):
    assert "Missing option '--data'" in run("bench", "serve", code=2)
    assert "no recordings are there" in run("bench", "serve", "--data", tmp_path, code=1)
    assert "Invalid value for '--seconds'" in run("bench", "serve", "--data", tmp_path, "--seconds", "1,2", code=2)
    assert "No such option" in run("bench", "scan", "--data", tmp_path, code=2)
