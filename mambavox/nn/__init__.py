"""Blocks made of the operations: Mamba, Mamba-2 and their streaming state."""

from mambavox.nn.mamba import Mamba
from mambavox.nn.mamba2 import Mamba2
from mambavox.nn.streaming import MambaState

__all__ = ["Mamba", "Mamba2", "MambaState"]
