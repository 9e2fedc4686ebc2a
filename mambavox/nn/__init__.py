"""Blocks made of the operations: Mamba, Mamba-2, both directions, and the streaming state."""

from mambavox.nn.bidirectional import ExtBiMamba, InnBiMamba
from mambavox.nn.mamba import Mamba
from mambavox.nn.mamba2 import Mamba2
from mambavox.nn.streaming import MambaState

__all__ = ["ExtBiMamba", "InnBiMamba", "Mamba", "Mamba2", "MambaState"]
