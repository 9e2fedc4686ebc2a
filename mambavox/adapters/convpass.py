"""ConvPass: a small convolution over the grid of tokens beside a sublayer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambavox.adapters.config import AdapterConfig, Context, Gate
from mambavox.adapters.tokens import TokenGrid
from mambavox.errors import ConfigError
from mambavox.lengths import length_mask


@dataclass
class ConvPassConfig(AdapterConfig):
    """ConvPass: down, GELU, convolution, GELU, up; the convolution starts as the identity.

    On AST the convolution goes over frequency and time, ``kernel_size`` wide in both, and each special token, which has
    no neighbours, is convolved by itself; on hosts of frames it goes over time. The paper puts it beside both
    sublayers (``placement="both"``) and tunes a constant factor for each task in place of a gate.

    Attributes:
        kernel_size: width of the convolution, an odd number.

    Raises:
        ConfigError: a value that is unknown or does not fit.

    Source:
        Jie and Deng 2022, "Convolutional Bypasses Are Better Vision Transformer Adapters" (arXiv 2207.07039), Figure 2,
        with the exact GELU.
    """

    method: ClassVar[str] = "CONVPASS"

    bottleneck_dim: int = 8
    sharing: str = "none"
    gate: Gate = "none"
    kernel_size: int = 3

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_sizes("kernel_size")
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size is {self.kernel_size}; expected an odd number, a kernel with a centre")

    def context(self) -> Context:
        """The convolution is centred."""
        return "all"

    def make_mixer(self, tokens: TokenGrid) -> nn.Module:
        """A :class:`FrameConvolution`, or a :class:`GridConvolution` where the host has bands."""
        if tokens.bands == 1:
            return FrameConvolution(self.bottleneck_dim, self.kernel_size)
        return GridConvolution(self.bottleneck_dim, self.kernel_size, tokens)


class FrameConvolution(nn.Module):
    """GELU, convolution over time, GELU.

    Args:
        channels: width of the frames.
        kernel_size: width of the convolution, an odd number.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2)
        start_as_identity(self.conv)

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mix frames.

        Args:
            hidden_states: ``(batch, time, channels)``.
            lengths: ``(batch,)`` valid frames of each row; all of them where not given.

        Returns:
            ``(batch, time, channels)``.
        """
        x = F.gelu(hidden_states)
        if lengths is not None:
            x = x.masked_fill(~length_mask(lengths, x.shape[1])[:, :, None], 0.0)
        return F.gelu(self.conv(x.transpose(1, 2)).transpose(1, 2))


class GridConvolution(nn.Module):
    """GELU, convolution over frequency and time, GELU.

    Args:
        channels: width of the tokens.
        kernel_size: width of the convolution, an odd number.
        tokens: layout of the tokens.
    """

    def __init__(self, channels: int, kernel_size: int, tokens: TokenGrid) -> None:
        super().__init__()
        self.tokens = tokens
        self.conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        start_as_identity(self.conv)

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mix tokens.

        Args:
            hidden_states: ``(batch, tokens, channels)``.
            lengths: always none: a host with bands has no padding.

        Returns:
            ``(batch, tokens, channels)``.
        """
        special, grid = self.tokens.split(F.gelu(hidden_states))
        # A grid of one token: it meets the centre of the kernel, its padding the rest.
        special = self.conv(special.reshape(-1, special.shape[-1], 1, 1)).reshape(special.shape)
        grid = self.conv(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return F.gelu(torch.cat([special, grid.flatten(1, 2)], dim=1))


def start_as_identity(conv: nn.Conv1d | nn.Conv2d) -> None:
    """Set a convolution to pass its input on: zero but for ones at its centre, from each channel to itself."""
    nn.init.dirac_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
