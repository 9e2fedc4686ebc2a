"""Blocks made of the operations: Mamba and its streaming state."""

from mambavox.nn.mamba import Mamba
from mambavox.nn.streaming import MambaState

__all__ = ["Mamba", "MambaState"]
