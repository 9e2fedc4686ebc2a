"""MambAdapter: a Mamba block between projections that all adapters of a host share."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import nn

from mambavox.adapters.config import AdapterConfig
from mambavox.nn import Mamba

Init = Literal["mamba", "paper"]


@dataclass
class MambAdapterConfig(AdapterConfig):
    """MambAdapter: a Mamba block between projections that all adapters share.

    The defaults are the paper's for audio classification (AST); for speech recognition it uses a small kernel
    (``d_conv=8, d_state=16``) and a wider bottleneck (104 on Whisper-small).

    Attributes:
        d_state: state size of the Mamba block.
        d_conv: width of its causal convolution in frames.
        expand: its inner width in multiples of ``bottleneck_dim``.
        init: how the Mamba block starts. ``"mamba"`` is the block's own initialisation; ``"paper"`` that of the
            authors' code, which sets its matrices so close to zero that the scan's contribution vanishes in
            float32 at the start, and which trains more slowly (see :func:`mambavox.adapters.mambadapter.mamba_mixer`).

    Source:
        MambAdapter (arXiv 2606.15638), equation 3 and the authors' code for what the text leaves open.
    """

    temporal: ClassVar[bool] = True
    method: ClassVar[str] = "MAMBADAPTER"

    d_state: int = 8
    d_conv: int = 24
    expand: int = 2
    init: Init = "mamba"

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_choice("init", get_args(Init))
        self._check_sizes("d_state", "d_conv", "expand")

    def make_mixer(self) -> nn.Module:
        """A Mamba block."""
        return mamba_mixer(self.bottleneck_dim, self.d_state, self.d_conv, self.expand, self.init)


def mamba_mixer(bottleneck_dim: int, d_state: int, d_conv: int, expand: int, init: str) -> Mamba:
    """A Mamba block.

    Args:
        bottleneck_dim: width of the block's input and output.
        d_state: state size.
        d_conv: width of the causal convolution in frames.
        expand: inner width in multiples of ``bottleneck_dim``.
        init: ``"mamba"`` keeps the block's own initialisation; ``"paper"`` sets the convolution's bias to 0 and
            every weight matrix to Xavier-uniform with gain 0.02, as the MambAdapter paper's code does. That start
            is nearly silent: with unit-variance frames of 768 channels and a bottleneck of 12 the block puts out
            4e-10 (``"mamba"``: 3e-3), the scan's part of which, one in 1e14, is lost in float32; the up
            projection's gradient is then far below AdamW's epsilon.

    Source:
        MambAdapter (arXiv 2606.15638), the authors' code.
    """
    mamba = Mamba(bottleneck_dim, d_state=d_state, d_conv=d_conv, expand=expand)
    if init == "paper":
        for name, parameter in mamba.named_parameters():
            if name == "conv1d.bias":
                nn.init.zeros_(parameter)
            elif name.endswith("weight"):
                nn.init.xavier_uniform_(parameter, gain=0.02)
    return mamba
