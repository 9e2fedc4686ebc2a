"""A Whisper as ONNX graphs, adapters inside."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_whisper
from typer.testing import CliRunner

from mambavox.adapters import apply_method
from mambavox.asr.whisper import load_whisper
from mambavox.asr.whisper_ctranslate2 import check_ctranslate2, export_ctranslate2, generate, merge_adapter
from mambavox.asr.whisper_export import OnnxWhisper, check_whisper, doubling_scan, export_whisper
from mambavox.asr.whisper_language import add_language, prefix_ids
from mambavox.cli.application import app
from mambavox.errors import ConfigError
from mambavox.ops.selective_scan import selective_scan

SMALL: dict[str, Any] = {"where": "decoder", "bottleneck_dim": 4, "d_state": 3, "d_conv": 4}


@pytest.mark.parametrize("time", [1, 4, 37])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_scan_of_the_graphs_is_the_scan(time: int, reverse: bool) -> None:
    batch, inner, states = 2, 3, 4
    x, dt, z = (torch.randn(batch, time, inner) for _ in range(3))
    B, C = (torch.randn(batch, time, states) for _ in range(2))
    A, D, bias = -torch.rand(inner, states), torch.randn(inner), torch.randn(inner)
    lengths = None if time == 4 else torch.tensor([time, max(time // 2, 1)])
    before = None if lengths is not None else torch.randn(batch, inner, states)
    options = {"z": z, "dt_bias": bias, "dt_softplus": True, "initial_state": before, "lengths": lengths}
    expected, last = selective_scan(x, dt, A, B, C, D, reverse=reverse, return_final_state=True, **options)
    found, state = doubling_scan(x, dt, A, B, C, D, reverse=reverse, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if lengths is None:
        torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def adapted(folder: Path) -> Any:
    host, _ = load_whisper(str(save_whisper(folder)))
    model = apply_method(host, "mambadapter", SMALL).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def test_the_graphs_write_what_the_model_writes(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = adapted(tmp_path / "whisper")
    about = export_whisper(model, tmp_path / "onnx", "de", 16_000, 100)
    assert sum(name.startswith("state.") for name in about["carried"]) == 4, "two layers of the decoder"
    assert check_whisper(model, tmp_path / "onnx") < 1e-5
    graphs = OnnxWhisper(tmp_path / "onnx")
    features = torch.full((1, 16, 100), -0.5)
    features[:, :, :61] = torch.randn(1, 16, 61)
    options = {"language": "de", "task": "transcribe", "do_sample": False, "force_unique_generate_call": True}
    expected = model.generate(input_features=features, **options)[0, 4:].tolist()
    found = graphs.generate(features.numpy())
    assert len(found) > 8 and expected[: len(found)] == found
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "down" in name).add_(0.1)
    with pytest.raises(ConfigError, match="its numbers differ from the model's by"):
        check_whisper(model, tmp_path / "onnx")
    with pytest.raises(ConfigError, match="is there already; expected a new or an empty folder"):
        export_whisper(model, tmp_path / "onnx", "de", 16_000, 100)


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_ctranslate2_writes_what_a_merged_model_writes(tmp_path: Path, quantization: str) -> None:
    pytest.importorskip("ctranslate2")
    host, processor = load_whisper(str(save_whisper(tmp_path / "whisper")))
    new = add_language(host, processor.tokenizer, "ckb")
    model = apply_method(host, "lora", {"r": 4}, token_rows=[new]).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    # CTranslate2 has rules of its own for timestamps that an untrained model writes where none are asked for.
    config = host.generation_config
    config.suppress_tokens = list(range(int(config.eos_token_id) + 1, host.config.vocab_size))
    features = torch.randn(1, 16, 100)
    options = {"language": "<|ckb|>", "task": "transcribe", "do_sample": False, "force_unique_generate_call": True}
    expected = model.generate(input_features=features, max_new_tokens=12, **options)[0, 4:].tolist()
    export_ctranslate2(model, processor, tmp_path / "ct2", quantization)
    assert {"model.bin", "tokenizer.json", "preprocessor_config.json"} <= {f.name for f in (tmp_path / "ct2").iterdir()}
    found = generate(tmp_path / "ct2", features.numpy(), prefix_ids(host, "ckb"), 16)
    assert len(found) > 4 and (found == expected[: len(found)] or quantization == "int8")
    assert check_ctranslate2(host, tmp_path / "ct2", "ckb", 100) or quantization == "int8"


def test_an_adapter_beside_the_weights_is_not_merged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of mambadapter computes beside the weights and cannot be merged"):
        merge_adapter(adapted(tmp_path / "whisper"))


def test_flags_of_the_other_kind(tmp_path: Path) -> None:
    whisper = str(save_whisper(tmp_path / "whisper"))
    done = CliRunner().invoke(
        app, ["export", "--model", whisper, "--output", str(tmp_path / "x"), "--block-seconds", "1"]
    )
    assert done.exit_code == 2 and "--block-seconds is for CTC models" in " ".join(done.output.split())
    assert not (tmp_path / "x").exists()
    done = CliRunner().invoke(app, ["export", "--model", whisper, "--output", str(tmp_path / "x")])
    assert done.exit_code == 1 and "knows several languages" in done.output and not (tmp_path / "x").exists()
