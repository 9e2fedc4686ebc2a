"""Configurations of the adapters: what is inserted where, and what is shared."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import nn

from mambavox.adapters.method_config import MethodConfig
from mambavox.adapters.sharing import parse_sharing
from mambavox.adapters.tokens import TokenGrid
from mambavox.errors import ConfigError

Where = Literal["encoder", "decoder", "both"]
Placement = Literal["ffn", "attention", "both"]
Insertion = Literal["parallel", "sequential"]
Gate = Literal["scalar", "channel", "token", "none"]
Context = Literal["frame", "past", "all"]
TokenOrder = Literal["frequency", "time", "both"]
DownInit = Literal["paper", "unit"]


@dataclass
class SublayerConfig(MethodConfig):
    """What every method has that stands at the host's sublayers.

    Attributes:
        where: which stacks of layers of the host get adapters.
        placement: which sublayers: the feed-forward one (in the literature "Pfeiffer"), attention, or both
            ("Houlsby").
        insertion: ``"parallel"`` reads the sublayer's input (in a pre-norm host the layer norm's output),
            ``"sequential"`` its output; either adds to the output.
        train_norms: also train a copy of the norm that feeds each adapted sublayer, and of the norm that ends the
            stack.
        target_modules: adapt only those of the chosen sublayers whose name matches (a regular expression for the
            whole name, or a list of names or endings).
        exclude_modules: leave those sublayers and norms out.
        layers_to_transform: indices of the layers that get adapters; all without it.

    Raises:
        ConfigError: a value that is unknown or does not fit.

    Source:
        Houlsby et al. 2019 (arXiv 1902.00751); Pfeiffer et al. 2021 (arXiv 2005.00247); He et al. 2022 on parallel
        insertion (arXiv 2110.04366).
    """

    where: Where = "encoder"
    placement: Placement = "ffn"
    insertion: Insertion = "parallel"
    train_norms: bool = True
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_choice("where", get_args(Where))
        self._check_choice("placement", get_args(Placement))
        self._check_choice("insertion", get_args(Insertion))
        if self.where != "encoder" and self.context() == "all":
            raise ConfigError(
                f"where is {self.where!r}, and this adapter lets a frame see those after it, which a decoder has not "
                "decoded yet; expected where='encoder', or a causal adapter (mixer='mamba' or 'mamba2')"
            )

    def context(self) -> Context:
        """Which frames an output frame of the mixer depends on: its own, also those before it, or all of its row.

        Unless it is ``"frame"``, the mixer is called with ``(hidden_states, lengths)``: ``lengths (batch,)``, the valid
        frames of each row, or none where all are; valid frames must not depend on what lies beyond. A decoder takes no
        ``"all"``, and nothing but ``"frame"`` when it decodes frame by frame.
        """
        return "frame"


@dataclass
class AdapterConfig(SublayerConfig):
    """What every adapter has: ``output = F(x) + gate * up(mixer(down(x)))`` around a frozen sublayer ``F``.

    A method is a subclass with its own fields, its mixer and a call of
    :func:`mambavox.adapters.registration.register_method`.

    Attributes:
        bottleneck_dim: width between the down and the up projection.
        sharing: which adapters share one pair of projections (one pair for each width, where encoder and decoder
            differ). ``"all"`` of the host; ``"placement"``: those at feed-forward sublayers share one pair, those at
            attention another; ``"groups:<k>"``: the adapted layers of each stack fall into k runs of neighbours, each
            with a pair; ``"none"``: each has its own; ``"low-rank-delta:<r>"``: one pair for all, and each adapter
            adds its own correction of rank r to both, which starts at zero.
        gate: what the branch is multiplied with. ``"scalar"``: a number for each adapter (the paper's alpha);
            ``"channel"``: a vector over the host's channels; ``"token"``: ``sigmoid(w . down(x) + b)``, a number for
            each token, with ``w`` zero at first; ``"none"``: no gate.
        scale_init: the gate's first value, at every channel and token; between 0 and 1 for ``gate="token"``.
        dropout: probability, after the mixer. The paper's code has 0.1 that never acts, because it keeps the
            encoder in evaluation mode while training.
        down_init: how the down projection starts. ``"paper"``: weight and bias normal with a standard deviation of
            0.01; ``"unit"``: the weight's is 1 / sqrt(width of the host), so that frames of unit variance keep it, and
            the bias is 0.

    Raises:
        ConfigError: a value that is unknown or does not fit.

    Source:
        MambAdapter (arXiv 2606.15638), equation 3.
    """

    norm_input: ClassVar[bool] = False
    """Whether each adapter has a layer norm before the down projection."""

    bottleneck_dim: int = 12
    sharing: str = "all"
    gate: Gate = "scalar"
    scale_init: float = 0.1
    dropout: float = 0.0
    down_init: DownInit = "paper"

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_choice("gate", get_args(Gate))
        self._check_choice("down_init", get_args(DownInit))
        self._check_sizes("bottleneck_dim")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; expected a probability in 0 .. 1, 1 excluded")
        sharing = parse_sharing(self.sharing)
        if sharing.kind == "low-rank-delta" and sharing.number > self.bottleneck_dim:
            raise ConfigError(
                f"sharing is {self.sharing!r} and bottleneck_dim {self.bottleneck_dim}; expected a rank of at most "
                "bottleneck_dim, above which sharing='none' does the same"
            )
        if self.gate != "none" and not (math.isfinite(self.scale_init) and self.scale_init != 0):
            raise ConfigError(
                f"scale_init is {self.scale_init!r}; expected a finite number other than 0: at 0, with the up "
                "projection at 0 too, no gradient would ever flow"
            )
        if self.gate == "token" and not 0 < self.scale_init < 1:
            raise ConfigError(
                f"scale_init is {self.scale_init!r}; expected 0 < scale_init < 1 for gate='token', a sigmoid"
            )

    def down_features(self) -> int:
        """What the down projection puts out; ``bottleneck_dim`` unless the mixer starts wider."""
        return self.bottleneck_dim

    def mixer_width(self) -> int:
        """How many of the down projection's channels, the first ones, the mixer takes; all unless it is narrower."""
        return self.down_features()

    @abstractmethod
    def make_mixer(self, tokens: TokenGrid) -> nn.Module:
        """A new mixer, ``(batch, time, mixer_width)`` to ``(batch, time, bottleneck_dim)``, initialised.

        With a path beside it (:meth:`make_residual`) it puts out the first channels of those of the path.

        Args:
            tokens: layout of the host's tokens.
        """

    def make_mixer_norm(self) -> nn.Module | None:
        """What the mixer's input goes through, ``(batch, time, mixer_width)``; ``None``: nothing."""
        return None

    def make_residual(self) -> nn.Module | None:
        """The path beside the mixer, ``(..., down_features)`` to ``(..., bottleneck_dim)``; ``None``: there is none."""
        return None


@dataclass
class TemporalAdapterConfig(AdapterConfig):
    """An adapter whose mixer goes along the tokens.

    Attributes:
        token_order: order in which the mixer sees AST's tokens, a grid of frequency bands and time steps behind two
            special tokens, which come first in every order. ``"frequency"``: the host's own, all time steps of one
            band, then the next band (the paper's); ``"time"``: all bands of one time step, then the next step;
            ``"both"``: the mean of the same mixer's outputs in both orders: no further parameters, twice the mixing.
            Other hosts' tokens are in the order of time already and take ``"frequency"`` only, which changes nothing.

    Raises:
        ConfigError: a value that is unknown or does not fit.
    """

    token_order: TokenOrder = "frequency"

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_choice("token_order", get_args(TokenOrder))
        if self.token_order != "frequency" and self.context() == "frame":
            raise ConfigError(
                f"token_order is {self.token_order!r}, and this adapter sees one token at a time; expected the "
                "default, 'frequency'"
            )
