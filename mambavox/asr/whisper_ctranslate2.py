"""A Whisper whose adapter goes into its weights, for CTranslate2 and what runs on it, such as faster-whisper."""

import tempfile
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mambavox.asr.whisper_language import prefix_ids
from mambavox.errors import ConfigError, HostError
from mambavox.hub import quiet_transformers, without_adapters

Quantization: TypeAlias = Literal["float32", "float16", "int8"]
"""In what the weights are written."""


def merge_adapter(model: Any) -> Any:
    """The model with its adapter in its weights; the adapter is gone from it.

    Args:
        model: a Whisper, adapted or not.

    Raises:
        ConfigError: the adapter is more than a change of weights.
    """
    if model is without_adapters(model):
        return model
    (adapter,) = model.peft_config.values()
    name = str(getattr(adapter.peft_type, "value", adapter.peft_type)).lower().replace("_", "-")
    if not hasattr(model.base_model, "merge_and_unload"):
        raise ConfigError(_unmergeable(name))
    try:
        return model.merge_and_unload()
    except (HostError, NotImplementedError, AttributeError, TypeError) as error:
        raise ConfigError(_unmergeable(name)) from error


def _unmergeable(name: str) -> str:
    return (
        f"an adapter of {name} computes beside the weights and cannot be merged into them, which CTranslate2 needs; "
        "expected lora or another method that changes weights, or --format onnx, which takes every adapter"
    )


def export_ctranslate2(model: Any, processor: Any, folder: Path, quantization: Quantization = "float32") -> None:
    """Write a Whisper for CTranslate2, with its tokenizer and feature extractor.

    Args:
        model: a Whisper, adapted or not, in float32 on the CPU; its adapter is merged into it.
        processor: of the model.
        folder: a new one, or an empty one.
        quantization: of the weights.

    Raises:
        ConfigError: the extra ``ctranslate2`` is not installed, the adapter cannot be merged, or the folder is not
            empty.
    """
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise ConfigError("this export needs ctranslate2: pip install 'mambavox[ctranslate2]'") from error
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already; expected a new or an empty folder: --output")
    merged = merge_adapter(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial, quiet_transformers():
        source, target = Path(partial) / "transformers", Path(partial) / "ctranslate2"
        merged.save_pretrained(source)
        processor.tokenizer.save_pretrained(source)
        processor.feature_extractor.save_pretrained(source)
        converter = TransformersConverter(str(source), copy_files=["tokenizer.json", "preprocessor_config.json"])
        converter.convert(str(target), quantization=None if quantization == "float32" else quantization)
        folder.mkdir(exist_ok=True)
        for file in target.iterdir():
            file.replace(folder / file.name)


def generate(folder: Path, features: NDArray[np.float32], prefix: list[int], most: int) -> list[int]:
    """Tokens of the likeliest text by an exported Whisper, greedily, in the type of its weights.

    Args:
        folder: that :func:`export_ctranslate2` wrote.
        features: spectrogram ``(1, mel, frames)``.
        prefix: tokens with which the text begins.
        most: tokens of prefix and text at most.
    """
    import ctranslate2

    whisper = ctranslate2.models.Whisper(str(folder), device="cpu")
    sound = ctranslate2.StorageView.from_array(np.ascontiguousarray(features))
    (found,) = whisper.generate(sound, [prefix], beam_size=1, max_length=most)
    ids: list[int] = found.sequences_ids[0]
    # Behind a language's new token CTranslate2 takes the rest of the prefix for text.
    return ids[len(prefix) - 1 :] if ids[: len(prefix) - 1] == prefix[1:] else ids


def check_ctranslate2(model: Any, folder: Path, language: str | None, window: int) -> bool:
    """Whether the likeliest text of some noise begins the same in CTranslate2 as in torch.

    Args:
        model: that was exported, merged.
        folder: that was written.
        language: code of the language; ``None`` of a model of one language.
        window: frames of a spectrogram.
    """
    host, prefix = without_adapters(model).eval(), prefix_ids(model, language)
    features = np.random.default_rng(0).standard_normal((1, host.config.num_mel_bins, window)).astype(np.float32)
    features[:, :, window * 2 // 3 :] = -1.0  # padding
    most = min(len(prefix) + 8, host.config.max_target_positions)
    found = generate(folder, features, prefix, most)
    options: dict[str, Any] = {} if language is None else {"language": f"<|{language}|>", "task": "transcribe"}
    with torch.inference_mode(), quiet_transformers():
        expected = host.generate(
            input_features=torch.from_numpy(features),
            max_new_tokens=most - len(prefix),
            do_sample=False,
            force_unique_generate_call=True,
            **options,
        )[0, len(prefix) :].tolist()
    return expected[: len(found)] == found
