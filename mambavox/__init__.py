"""Mamba state-space models for speech and audio.

Importing the package registers its adapters with PEFT, so that ``peft.PeftModel.from_pretrained`` knows them.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mambavox.adapters import BottleneckConfig, MambAdapterConfig

if TYPE_CHECKING:
    from mambavox.evaluation.classifier import AudioClassifier

try:
    __version__ = version("mambavox")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["AudioClassifier", "BottleneckConfig", "MambAdapterConfig", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the classifier, and transformers' models with it, only when it is asked for."""
    if name == "AudioClassifier":
        from mambavox.evaluation.classifier import AudioClassifier

        return AudioClassifier
    raise AttributeError(f"module 'mambavox' has no attribute {name!r}")
