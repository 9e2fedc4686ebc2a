"""The Conformer adapter: a Conformer's convolution module, narrowed to an adapter."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambavox.adapters.config import Context, Gate, TemporalAdapterConfig
from mambavox.adapters.tokens import TokenGrid
from mambavox.lengths import length_mask
from mambavox.ops import causal_conv1d


@dataclass
class ConformerAdapterConfig(TemporalAdapterConfig):
    """Conformer adapter: layer norm, down to ``2 * bottleneck_dim``, GLU, depthwise convolution, norm, swish, up.

    With ``r = bottleneck_dim`` and ``d`` channels of the host, each adapter has
    ``2d + 2r(d + 1) + r(kernel_size + 1) + 2r + d(r + 1)`` parameters.

    The papers' module has batch normalisation, whose training statistics mix the rows of a batch and count their
    padding. Here the norm is :class:`RowNorm`, of as many parameters: the statistics of each row's own valid frames,
    the same in training and evaluation. The layer norm at the start is applied; the papers' code makes it and drops
    its output.

    Attributes:
        kernel_size: width of the convolution in frames, centred (an even one reaches one frame further ahead). The
            papers' is 31, for sounds other than speech (ESC-50, UrbanSound8K) 8.

    Raises:
        ConfigError: a value that is unknown or does not fit.

    Source:
        Cappellazzo et al. 2023 (arXiv 2312.03694); the baseline of MambAdapter (arXiv 2606.15638). The module: Gulati
        et al. 2020 (arXiv 2005.08100), section 2.2.
    """

    method: ClassVar[str] = "CONFORMER"
    norm_input: ClassVar[bool] = True

    bottleneck_dim: int = 8
    sharing: str = "none"
    gate: Gate = "none"
    kernel_size: int = 31

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_sizes("kernel_size")

    def context(self) -> Context:
        """The convolution is centred, the norm looks at the whole row."""
        return "all"

    def down_features(self) -> int:
        """Values and gates of the GLU."""
        return 2 * self.bottleneck_dim

    def make_mixer(self, tokens: TokenGrid) -> nn.Module:
        """A :class:`ConformerConvolution`."""
        return ConformerConvolution(self.bottleneck_dim, self.kernel_size)


class ConformerConvolution(nn.Module):
    """GLU, depthwise convolution over time, norm and swish.

    Args:
        channels: width after the GLU.
        kernel_size: width of the convolution in frames.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        # Holds the parameters and their initialisation; the forward pass goes through causal_conv1d.
        self.conv = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        self.norm = RowNorm(channels)

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mix frames.

        Args:
            hidden_states: ``(batch, time, 2 * channels)``.
            lengths: ``(batch,)`` valid frames of each row; all of them where not given.

        Returns:
            ``(batch, time, channels)``.
        """
        x = F.glu(hidden_states, dim=-1)
        valid = None if lengths is None else length_mask(lengths, x.shape[1])[:, :, None]
        if valid is not None:
            x = x.masked_fill(~valid, 0.0)
        # A causal convolution that runs on past the end, moved back by half its width.
        ahead = self.conv.kernel_size[0] // 2
        x = causal_conv1d(F.pad(x, (0, 0, 0, ahead)), self.conv.weight.squeeze(1), self.conv.bias)[:, ahead:]
        return F.silu(self.norm(x, valid))


class RowNorm(nn.Module):
    """Zero mean and unit variance over the valid frames and all channels of each row, then a scale and shift.

    Group normalisation with one group, inside each row's length. Taken over each frame's channels alone, as a layer
    norm does, the statistics of a bottleneck of two channels would leave nothing but a sign.

    Args:
        channels: width of the frames.

    Source:
        Wu and He 2018 (arXiv 1803.08494), with one group.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise, in float32 at least.

        Args:
            x: ``(batch, time, channels)``.
            valid: ``(batch, time, 1)``, true at valid frames; all of them where not given.

        Returns:
            ``(batch, time, channels)`` in the dtype of ``x``.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if valid is None:
            centred = wide - wide.mean((1, 2), keepdim=True)
            variance = centred.square().mean((1, 2), keepdim=True)
        else:
            count = valid.sum((1, 2), keepdim=True).clamp(min=1) * x.shape[-1]
            centred = wide - wide.masked_fill(~valid, 0.0).sum((1, 2), keepdim=True) / count
            variance = centred.masked_fill(~valid, 0.0).square().sum((1, 2), keepdim=True) / count
        output = centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return output.to(x.dtype)
