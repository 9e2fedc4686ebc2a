"""What stands between an adapter's down and up projections."""

import torch
from torch import nn

from mambavox.nn import Mamba


@torch.no_grad()
def mamba_mixer(bottleneck_dim: int, d_state: int, d_conv: int, expand: int) -> Mamba:
    """A Mamba block, initialised as in the paper's code.

    The convolution's bias starts at 0, every weight matrix at Xavier-uniform with gain 0.02; ``A_log``, ``D`` and
    the step size's bias keep the block's own initialisation.

    Args:
        bottleneck_dim: width of the block's input and output.
        d_state: state size.
        d_conv: width of the causal convolution in frames.
        expand: inner width in multiples of ``bottleneck_dim``.

    Source:
        MambAdapter (arXiv 2606.15638), the authors' code.
    """
    mamba = Mamba(bottleneck_dim, d_state=d_state, d_conv=d_conv, expand=expand)
    for name, parameter in mamba.named_parameters():
        if name == "conv1d.bias":
            nn.init.zeros_(parameter)
        elif name.endswith("weight"):
            nn.init.xavier_uniform_(parameter, gain=0.02)
    return mamba


def gelu_mixer() -> nn.GELU:
    """GELU, frame by frame: the classic bottleneck adapter."""
    return nn.GELU()
