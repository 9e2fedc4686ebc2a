"""Mamba state-space models for speech and audio.

Importing the package registers its adapters with PEFT, so that ``peft.PeftModel.from_pretrained`` knows them.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mambavox")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
