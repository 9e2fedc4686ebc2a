"""Mixtures of adapters: several bottleneck experts beside a sublayer, between which tokens are divided."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambavox.adapters.branch import Projections
from mambavox.adapters.config import Context, SublayerConfig
from mambavox.adapters.sublayer import SublayerAdapter
from mambavox.adapters.tuner import AdapterModel
from mambavox.errors import ConfigError
from mambavox.lengths import length_mask

Routing = Literal["soft", "dense"]


@dataclass
class MixtureOfAdaptersConfig(SublayerConfig):
    """Soft or dense mixture of adapters: bottleneck experts (linear, GELU, linear) beside each adapted sublayer.

    With ``n`` experts of width ``r`` in a host of ``d`` channels each sublayer has ``n(2dr + r + d)`` parameters for
    the experts and, for the routing, ``dn`` a slot (soft) or ``n(d + 1)`` (dense).

    The slots of soft routing are means over a row's tokens; padding has no part in them. The defaults are those of
    the authors' example (reduction rate 128 of 768 channels, 7 adapters, 1 slot), which stands beside attention; the
    paper tries both placements, 2 to 15 adapters and 1 or 2 slots.

    Attributes:
        routing: ``"soft"``: each expert works on ``num_slots`` mixtures of all tokens, and each token receives a
            mixture of all the experts' outputs; ``"dense"``: each expert works on each token, and a softmax over a
            linear map of the token weighs their outputs.
        num_experts: adapters in each sublayer.
        num_slots: mixtures that each expert works on; with soft routing only.
        bottleneck_dim: width of each expert between its down and up projection.

    Raises:
        ConfigError: a value that is unknown or does not fit.

    Source:
        Cappellazzo et al. 2024 (arXiv 2402.00828), without the optional normalisation, which they do not use; soft
        routing: Puigcerver et al. 2023 (arXiv 2308.00951), section 2.1.
    """

    method: ClassVar[str] = "MOA"

    routing: Routing = "soft"
    num_experts: int = 7
    num_slots: int = 1
    bottleneck_dim: int = 6

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_choice("routing", get_args(Routing))
        self._check_sizes("num_experts", "num_slots", "bottleneck_dim")
        if self.routing == "dense" and self.num_slots != 1:
            raise ConfigError(
                f"num_slots is {self.num_slots} and routing 'dense', which has no slots; expected routing='soft'"
            )

    def context(self) -> Context:
        """A slot is a mixture of the whole row."""
        return "all" if self.routing == "soft" else "frame"


class Mixture(nn.Module):
    """One adapter's experts and routing in one sublayer.

    Args:
        config: the adapter's configuration.
        width: size of the host's hidden states.
    """

    projections = None

    def __init__(self, config: MixtureOfAdaptersConfig, width: int) -> None:
        super().__init__()
        self.sequential = config.insertion == "sequential"
        self.context = config.context()
        inner = config.bottleneck_dim
        self.experts = nn.ModuleList(Projections(width, inner, inner) for _ in range(config.num_experts))
        self.slots = self.router = None
        if config.routing == "soft":
            self.slots = nn.Parameter(torch.empty(width, config.num_experts, config.num_slots))
            nn.init.xavier_normal_(self.slots)
        else:
            self.router = nn.Linear(width, config.num_experts)

    def forward(self, hidden_states: Tensor, projections: None, lengths: Tensor | None) -> Tensor:
        """What the adapter adds.

        Args:
            hidden_states: ``(batch, time, width)``.
            projections: none; each expert has its own.
            lengths: ``(batch,)`` valid frames of each row; all of them where not given.

        Returns:
            ``(batch, time, width)``.
        """
        if self.slots is not None:
            return self._soft(hidden_states, self.slots, lengths)
        assert self.router is not None
        return self._dense(hidden_states, self.router(hidden_states).softmax(-1))

    def _soft(self, x: Tensor, slots: Tensor, lengths: Tensor | None) -> Tensor:
        scores = torch.einsum("btd,dns->btns", x, slots)
        shares = scores
        if lengths is not None:
            valid = length_mask(lengths, x.shape[1])[:, :, None, None]
            # A row without valid frames keeps finite shares: -inf throughout would give nan.
            shares = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
            x = x.masked_fill(~valid[..., 0], 0.0)
        mixtures = torch.einsum("btd,btns->bnsd", x, shares.softmax(1))
        down, up = self._stacked("down"), self._stacked("up")
        inner = F.gelu(torch.einsum("bnsd,nrd->bnsr", mixtures, down[0]) + down[1][:, None])
        outputs = torch.einsum("bnsr,ndr->bnsd", inner, up[0]) + up[1][:, None]
        return torch.einsum("bnsd,btns->btd", outputs, scores.flatten(2).softmax(-1).unflatten(2, slots.shape[1:]))

    def _dense(self, x: Tensor, shares: Tensor) -> Tensor:
        down, up = self._stacked("down"), self._stacked("up")
        inner = F.gelu(F.linear(x, down[0].flatten(0, 1), down[1].flatten()))
        weighed = inner.unflatten(-1, (len(self.experts), -1)) * shares[..., None]
        # All experts' up projections in one product: their outputs are only ever added.
        return F.linear(weighed.flatten(-2), up[0].transpose(0, 1).flatten(1)) + shares @ up[1]

    def _stacked(self, part: str) -> tuple[Tensor, Tensor]:
        """Weights ``(experts, out, in)`` and biases ``(experts, out)`` of one projection of all experts."""
        linears: list[Any] = [getattr(expert, part) for expert in self.experts]
        return torch.stack([linear.weight for linear in linears]), torch.stack([linear.bias for linear in linears])


class MixtureLayer(SublayerAdapter):
    """A sublayer of the host with mixtures of adapters beside it."""

    def make_branch(self, config: MixtureOfAdaptersConfig) -> nn.Module:
        """A :class:`Mixture`.

        Args:
            config: the adapter's configuration.
        """
        return Mixture(config, self.sublayer.width)


class MixtureModel(AdapterModel):
    """Attaches mixtures of adapters."""

    prefix = "moa_"
    layer_class = MixtureLayer
