"""A real Whisper with MambAdapters in encoder and decoder, and with LoRA, in onnxruntime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real.conftest import RATE
from real.test_adapters import SMALL, strong

from mambavox.adapters import apply_method
from mambavox.asr.whisper_export import OnnxWhisper, check_whisper, export_whisper
from mambavox.hub import quiet_transformers

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.mark.parametrize("options", [{**SMALL, "where": "both"}, {**SMALL, "mixer": "bimamba"}, None])
def test_graphs_write_what_torch_writes(
    options: dict[str, Any] | None,
    fresh: Callable[[], Any],
    loaded: tuple[Any, Any],
    clips: list[np.ndarray],
    tmp_path: Path,
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    method = "lora" if options is None else "mambadapter"
    model = strong(apply_method(fresh(), method, options or {}))
    export_whisper(model, tmp_path / "onnx", "en", RATE, 3000)
    assert check_whisper(model, tmp_path / "onnx") < 1e-4
    graphs = OnnxWhisper(tmp_path / "onnx")
    for clip in clips:
        features = loaded[1].feature_extractor([clip], sampling_rate=RATE, return_tensors="pt").input_features
        with torch.inference_mode(), quiet_transformers():
            expected = model.generate(input_features=features, language="en", task="transcribe", do_sample=False)
        assert graphs.generate(features.numpy()) == expected[0].tolist()
