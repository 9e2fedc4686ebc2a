"""Whisper: loading."""

from typing import Any

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from mambavox import assets
from mambavox.errors import HostError
from mambavox.hub import is_of_type, load_config, load_model, loading


def load_whisper(name: str) -> tuple[Any, Any]:
    """A Whisper in float32, and its processor."""
    kind = load_config(name).model_type
    if kind != "whisper":
        raise HostError(f"backbone {name!r} is of type {kind!r}; expected a Whisper, such as openai/whisper-small")
    with loading(name):
        processor = WhisperProcessor.from_pretrained(assets.locate(name))
    model = load_model(WhisperForConditionalGeneration, name)
    model.config.apply_spec_augment = False
    return model, processor


def is_whisper(name: str) -> bool:
    """Whether a name is that of a Whisper."""
    return is_of_type(name, ("whisper",))
