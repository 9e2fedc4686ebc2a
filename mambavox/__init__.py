"""Mamba state-space models for speech and audio.

After ``import mambavox`` PEFT knows the adapters, so that ``peft.PeftModel.from_pretrained`` loads them.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mambavox._peft_hook import register_with_peft

if TYPE_CHECKING:
    from mambavox.adapters import BottleneckConfig, ConformerAdapterConfig, ConvPassConfig, MambAdapterConfig
    from mambavox.evaluation.classifier import AudioClassifier
    from mambavox.nn.speed_up import speed_up

try:
    __version__ = version("mambavox")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "AudioClassifier",
    "BottleneckConfig",
    "ConformerAdapterConfig",
    "ConvPassConfig",
    "MambAdapterConfig",
    "__version__",
    "speed_up",
]

# Loaded when asked for: peft and transformers take seconds to import.
_HOMES = {
    "AudioClassifier": "mambavox.evaluation.classifier",
    "BottleneckConfig": "mambavox.adapters",
    "ConformerAdapterConfig": "mambavox.adapters",
    "ConvPassConfig": "mambavox.adapters",
    "MambAdapterConfig": "mambavox.adapters",
    "speed_up": "mambavox.nn.speed_up",
}


def __getattr__(name: str) -> Any:
    """A public name from the room where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mambavox' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


register_with_peft()
