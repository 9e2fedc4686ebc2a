"""A recogniser's streaming step for other runtimes, and the proof that it says the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.data import Waveform
from mambavox.errors import ConfigError
from mambavox.hubert.onnx_step import BLOCK_SECONDS, export_step

_TOLERANCE = 1e-4  # of logits, in units of the largest of them where that is above 1
_CHECKED_SECONDS = 3.0


def export_recognizer(recognizer: SpeechRecognizer, path: Path, seconds: float = BLOCK_SECONDS) -> dict[str, Any]:
    """Write a recogniser's streaming step as ONNX; beside it, in JSON, how to run it and the vocabulary.

    Args:
        recognizer: of a causal Mamba-HuBERT, adapted or not, on the CPU.
        path: of the graph; its folder is made.
        seconds: length of a block.

    Returns:
        What the JSON file says.

    Raises:
        HostError: the model is no Mamba-HuBERT, or an adapter on it cannot be streamed.
        ConfigError: the model is not causal or normalises whole recordings, or the extra ``export`` is missing.
    """
    recognizer.check_streamable()
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = recognizer.vocabulary
    return export_step(recognizer.base, path, seconds, {"tokens": list(vocabulary.tokens), "blank": vocabulary.blank})


def run_graph(path: Path, waveform: Waveform) -> NDArray[np.float32]:
    """Logits of a waveform by an exported graph in onnxruntime, as its description says; an example for others.

    Args:
        path: of the graph.
        waveform: ``(samples,)``, at the rate of the description. What fills no block is left out.

    Returns:
        ``(frames, tokens)``.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    state = {
        name: np.zeros(shape, dtype=np.float32) for name, shape in description["inputs"].items() if name != "samples"
    }
    block, logits = description["block_samples"], []
    for begin in range(0, len(waveform) - block + 1, block):
        found, *new = session.run(None, {"samples": waveform[None, begin : begin + block], **state})
        logits.append(found[0])
        state = dict(zip(state, new, strict=True))
    return np.concatenate(logits)


def check_graph(recognizer: SpeechRecognizer, path: Path) -> float | None:
    """Largest difference of an exported graph's logits from the model's, on three seconds of noise.

    Args:
        recognizer: that was exported.
        path: of the graph.

    Returns:
        The difference; none where onnxruntime is not installed.

    Raises:
        ConfigError: they differ by more than rounding.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    samples = round(_CHECKED_SECONDS * recognizer.sampling_rate) + description["block_samples"]
    waveform = 0.1 * np.random.default_rng(0).standard_normal(samples, dtype=np.float32)
    found = run_graph(path, waveform)
    model = recognizer.base
    silence = np.zeros(description["inputs"]["waveform"][1], dtype=np.float32)
    with torch.inference_mode():
        heard = torch.from_numpy(np.concatenate([silence, waveform]))[None]
        expected = model.stream(heard, model.init_streaming_state(1))[0].logits
    assert expected is not None
    logits = expected[0, : len(found)].numpy()
    difference = float(np.abs(found - logits).max())
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(logits).max())):
        raise ConfigError(
            f"{path}: its logits differ from the model's by {difference:.1e}; expected rounding alone. Export it with "
            "another version of torch or onnxscript"
        )
    return difference
