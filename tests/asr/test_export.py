"""An exported streaming step says what the model says."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import get_peft_model
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mambavox.adapters import MambAdapterConfig
from mambavox.asr.export import check_graph, export_recognizer, run_graph
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.tokenizer import train_tokenizer
from mambavox.cli import app
from mambavox.errors import ConfigError, HostError
from mambavox.hubert import MambaHubertForCTC
from mambavox.hubert.onnx_step import StreamingStep

TOKENIZER = train_tokenizer(["abc de"])


def recognizer_of(encoder="mamba", normalize=False, **overrides):
    config = tiny_config(encoder, vocab_size=len(TOKENIZER), pad_token_id=0, **overrides)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)
    return SpeechRecognizer(MambaHubertForCTC(config), extractor, TOKENIZER)


def test_blocks_in_onnxruntime_give_the_logits_of_the_eager_stream(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    recognizer = recognizer_of(["mamba-mlp", "mamba2"])
    path = tmp_path / "new" / "step.onnx"
    description = export_recognizer(recognizer, path, 0.02)
    assert description == json.loads(path.with_suffix(".json").read_text())
    assert sorted(file.name for file in path.parent.iterdir()) == ["step.json", "step.onnx"]
    assert description["tokens"] == ["", "", " ", "a", "b", "c", "d", "e"] and description["blank"] == 0
    assert description["block_samples"] == 320 == 20 * description["block_frames"]
    waveform = torch.randn(3 * 16_000).numpy()
    logits = run_graph(path, waveform)
    assert logits.shape == (2400, len(TOKENIZER))
    context = description["inputs"]["waveform"][1]
    with torch.inference_mode():
        heard = torch.from_numpy(np.concatenate([np.zeros(context, np.float32), waveform]))[None]
        expected = recognizer.model(heard).logits[0].numpy()
    np.testing.assert_allclose(logits, expected[:2400], atol=1e-4)
    assert np.abs(logits[100:] - np.roll(logits, 1, 0)[100:]).max() > 1e-2  # it says something
    assert check_graph(recognizer, path) < 1e-4


def adapted(recognizer, **options):
    """The same with an adapter that says something."""
    model = get_peft_model(recognizer.model, MambAdapterConfig(bottleneck_dim=4, placement="attention", **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return SpeechRecognizer(model, recognizer.extractor, TOKENIZER)


def test_an_adapted_model_is_exported_with_its_adapter(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    recognizer = adapted(recognizer_of(["mamba", "mamba2"]))
    path = tmp_path / "step.onnx"
    description = export_recognizer(recognizer, path, 0.02)
    assert any("branches" in name for name in description["inputs"])
    waveform = torch.randn(16_000)
    heard = torch.cat([torch.zeros(description["inputs"]["waveform"][1]), waveform])[None]
    logits = run_graph(path, waveform.numpy())
    with torch.inference_mode():
        expected = recognizer.model(heard).logits[0, : len(logits)].numpy()
        with recognizer.model.disable_adapter():
            plain = recognizer.model(heard).logits[0, : len(logits)].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.abs(logits - plain).max() > 1e-2
    assert check_graph(recognizer, path) < 1e-4


def test_the_step_in_torch_is_the_stream_from_the_very_first_sample():
    recognizer = recognizer_of()
    step = StreamingStep(recognizer.model, 4).eval()
    waveform = torch.randn(1, 2000)
    state = step.initial_state()
    state["waveform"] = waveform[:, : step.context]
    tensors, found = list(state.values()), []
    with torch.inference_mode():
        for begin in range(step.context, 2000 - step.block, step.block):
            logits, *tensors = step(waveform[:, begin : begin + step.block], *tensors)
            found.append(logits)
        expected = recognizer.model(waveform).logits
    found = torch.cat(found, dim=1)
    torch.testing.assert_close(found, expected[:, : found.shape[1]], atol=1e-5, rtol=0)


def test_what_has_no_step_is_refused_by_name(tmp_path):
    for recognizer, message in (
        (recognizer_of("ext-bimamba"), r"not causal.*0 \(ext-bimamba\)"),
        (recognizer_of("causal-transformer"), "state grows"),
        (adapted(recognizer_of(["mamba", "causal-transformer"])), "state grows"),
        (recognizer_of(normalize=True), "do_normalize"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_recognizer(recognizer, tmp_path / "step.onnx")
    other = recognizer_of()
    other.model = torch.nn.Linear(2, 2)
    with pytest.raises(HostError, match="a Linear cannot be streamed"):
        export_recognizer(other, tmp_path / "step.onnx")
    with pytest.raises(ConfigError, match="0 frames"):
        export_recognizer(recognizer_of(), tmp_path / "step.onnx", 0.0001)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    recognizer = recognizer_of(num_hidden_layers=1)
    for part in (recognizer.model, recognizer.extractor, TOKENIZER):
        part.save_pretrained(tmp_path / "run")
    flags = ["export", "--model", str(tmp_path / "run"), "--output"]
    result = CliRunner().invoke(app, [*flags, str(tmp_path / "step.onnx"), "--block-seconds", "0.02"])
    assert result.exit_code == 0, result.output
    assert "320 samples in, 16 frames out, 4 tensors of state" in result.stdout
    assert "largest difference of its logits" in result.stdout or "onnxruntime" in result.stderr
    assert CliRunner().invoke(app, [*flags, str(tmp_path / "step.pt")]).exit_code == 2
    pytest.importorskip("onnxruntime")

    def copy(model, path, *_):
        for ending in (".onnx", ".json"):
            shutil.copy(tmp_path / f"step{ending}", path.with_suffix(ending))
        return json.loads(path.with_suffix(".json").read_text())

    monkeypatch.setattr("mambavox.asr.export.export_step", copy)
    monkeypatch.setattr("mambavox.asr.export._TOLERANCE", -1.0)
    result = CliRunner().invoke(app, [*flags, str(tmp_path / "wrong.onnx")])
    assert result.exit_code == 1 and "differ from the model's" in result.stderr
    assert list(tmp_path.glob("wrong*")) == []
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, [*flags, str(tmp_path / "file" / "step.onnx")])
    assert result.exit_code == 1 and f"{tmp_path}/file" in result.stderr
