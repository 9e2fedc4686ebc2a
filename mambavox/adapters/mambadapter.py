"""MambAdapter: a Mamba block between projections that all adapters of a host share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from mambavox.adapters.config import Context, TemporalAdapterConfig
from mambavox.adapters.tokens import TokenGrid
from mambavox.errors import ConfigError
from mambavox.nn import ExtBiMamba, Mamba, Mamba2

Mixer = Literal["mamba", "mamba2", "bimamba", "none"]
Init = Literal["mamba", "paper"]
Residual = Literal["none", "linear", "gelu"]
MixerNorm = Literal["none", "rms"]


RESIDUAL: Mapping[str, Any] = {
    "bottleneck_dim": 60,
    "sharing": "none",
    "mixer": "bimamba",
    "mixer_dim": 16,
    "d_state": 8,
    "d_conv": 4,
    "expand": 1,
    "residual": "gelu",
    "mixer_norm": "rms",
    "down_init": "unit",
    "scale_init": 1.0,
}
"""Options of the method ``mambadapter-residual``, our form beside the paper's.

Each layer has projections of its own. Inside, small Mamba blocks in both directions stand behind an RMS norm and add to
the first 16 channels of a bottleneck adapter. On Whisper it learns faster than the paper's form, and at rates at which
that does not learn (``docs/results/adapter-study.md``).
"""


@dataclass
class MambAdapterConfig(TemporalAdapterConfig):
    """MambAdapter: a Mamba block between projections that all adapters share.

    The defaults are the paper's for audio classification (AST); for speech recognition it uses a small kernel
    (``d_conv=8, d_state=16``) and a wider bottleneck (104 on Whisper-small).

    With ``r = mixer_dim`` (``bottleneck_dim``, unless it is given), ``i = expand * r``, ``N = d_state``, ``K = d_conv``
    and ``t = ceil(r / 16)`` a Mamba block has ``M = 2ri + i(K + 1) + i(t + 2N) + ti + i + iN + i + ir`` parameters
    (2,136 at the defaults), ``"bimamba"`` 2M (4,272) and ``"mamba2"``, of ``h = i / gcd(i, 64)`` heads,
    ``r(2i + 2N + h) + (i + 2N)(K + 1) + 3h + i + ir`` (2,125). ``mixer_norm="rms"`` adds r, ``residual`` nothing.

    ``residual`` and ``mixer_norm`` make of the paper's ``up(Mamba(down(x)))`` what Mamba stands in elsewhere, a path
    beside a normalised block: ``up(gelu(h) + Mamba(norm(h)))`` with ``h = down(x)``.

    Attributes:
        mixer: ``"mamba"``: one Mamba block, forwards in time (the paper's); ``"mamba2"``: one Mamba-2 block with heads
            of gcd(expand * bottleneck_dim, 64) channels; ``"bimamba"``: two Mamba blocks, of which the second goes
            through each row from its last valid frame to its first, and the sum of their outputs; ``"none"``:
            nothing, the paper's ablation.
        d_state: state size of the Mamba block.
        d_conv: width of its causal convolution in frames.
        expand: its inner width in multiples of ``bottleneck_dim``.
        init: how the mixer starts. ``"mamba"`` is the block's own initialisation; ``"paper"`` that of the
            authors' code, which sets its matrices so close to zero that the scan's contribution vanishes in
            float32 at the start, and which trains more slowly (see :func:`mambavox.adapters.mambadapter.paper_init`).
        residual: a path from the down to the up projection beside the mixer: ``"linear"``: ``down(x)``; ``"gelu"``: its
            GELU, with which the adapter is a bottleneck adapter plus a mixer; ``"none"``: there is none (the paper's).
        mixer_norm: ``"rms"``: an RMS norm of each frame before the mixer, not on the path beside it; ``"none"``.
        mixer_dim: let the mixer go over the first so many of the bottleneck's channels, and add its output to these
            alone; the others go by ``residual``, which it needs. All of them without it.

    Raises:
        ConfigError: a value that is unknown or does not fit.

    Source:
        MambAdapter (arXiv 2606.15638), equation 3 and the authors' code for what the text leaves open. Mamba-2: Dao
        and Gu 2024 (arXiv 2405.21060). Both directions: ExtBiMamba of Mamba-based HuBERT (arXiv 2506.12606).
    """

    method: ClassVar[str] = "MAMBADAPTER"

    mixer: Mixer = "mamba"
    d_state: int = 8
    d_conv: int = 24
    expand: int = 2
    init: Init = "mamba"
    residual: Residual = "none"
    mixer_norm: MixerNorm = "none"
    mixer_dim: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        self._check_choice("mixer", get_args(Mixer))
        super().__post_init__()
        self._check_choice("init", get_args(Init))
        self._check_choice("residual", get_args(Residual))
        self._check_choice("mixer_norm", get_args(MixerNorm))
        self._check_sizes("d_state", "d_conv", "expand")
        if self.mixer == "none" and (self.residual != "none" or self.mixer_norm != "none"):
            raise ConfigError(
                f"mixer is 'none', and residual is {self.residual!r}, mixer_norm {self.mixer_norm!r}; expected 'none' "
                "for both: there is no mixer that they could stand at"
            )
        if self.mixer_dim is not None:
            self._check_sizes("mixer_dim")
            if self.mixer_dim > self.bottleneck_dim or self.residual == "none":
                raise ConfigError(
                    f"mixer_dim is {self.mixer_dim}, bottleneck_dim {self.bottleneck_dim}, residual {self.residual!r}; "
                    "expected at most bottleneck_dim, and a residual, by which the other channels go"
                )

    def context(self) -> Context:
        """Backwards in time too with ``mixer="bimamba"``."""
        if self.mixer == "none":
            return "frame"
        return "all" if self.mixer == "bimamba" else "past"

    def mixer_width(self) -> int:
        """``mixer_dim``, where it is given."""
        return self.mixer_dim or self.bottleneck_dim

    def make_mixer_norm(self) -> nn.Module | None:
        """What ``mixer_norm`` says."""
        return FrameNorm(self.mixer_width(), eps=1e-5) if self.mixer_norm == "rms" else None

    def make_residual(self) -> nn.Module | None:
        """What ``residual`` says."""
        return {"none": None, "linear": nn.Identity(), "gelu": nn.GELU()}[self.residual]

    def make_mixer(self, tokens: TokenGrid) -> nn.Module:
        """What ``mixer`` says."""
        if self.mixer == "none":
            return nn.Identity()
        r, d_state, d_conv, expand = self.mixer_width(), self.d_state, self.d_conv, self.expand
        block: nn.Module
        if self.mixer == "mamba2":
            block = Mamba2(r, d_state, d_conv, expand, headdim=math.gcd(expand * r, 64))
        elif self.mixer == "bimamba":
            block = ExtBiMamba(r, d_state=d_state, d_conv=d_conv, expand=expand)
        else:
            block = Mamba(r, d_state, d_conv, expand)
        if self.init == "paper":
            paper_init(block)
        return block


class FrameNorm(nn.RMSNorm):
    """RMS norm of each frame, in the precision of its weight, whatever autocast makes of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., channels)``, both ways."""
        return super().forward(x.to(self.weight.dtype))


def paper_init(block: nn.Module) -> None:
    """Set a Mamba block's convolution biases to 0 and every weight matrix to Xavier-uniform with gain 0.02.

    That start is nearly silent: with unit-variance frames of 768 channels and a bottleneck of 12 a Mamba block puts
    out 4e-10 (its own initialisation: 3e-3), the scan's part of which, one in 1e14, is lost in float32; the up
    projection's gradient is then far below AdamW's epsilon.

    Args:
        block: a Mamba, Mamba-2 or ExtBiMamba block.

    Source:
        MambAdapter (arXiv 2606.15638), the authors' code.
    """
    for name, parameter in block.named_parameters():
        if name.endswith("conv1d.bias"):
            nn.init.zeros_(parameter)
        elif name.endswith("weight") and parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter, gain=0.02)
