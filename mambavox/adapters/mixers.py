"""What stands between an adapter's down and up projections."""

from torch import nn

from mambavox.nn import Mamba


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
