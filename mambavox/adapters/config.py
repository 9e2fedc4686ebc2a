"""Configurations of the adapters: what is inserted where, and what is shared."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

from peft import PeftConfig, PeftType
from torch import nn

from mambavox.adapters.sharing import parse_sharing
from mambavox.adapters.tokens import TokenGrid
from mambavox.errors import ConfigError

Where = Literal["encoder", "decoder", "both"]
Placement = Literal["ffn", "attention", "both"]
Insertion = Literal["parallel", "sequential"]
Gate = Literal["scalar", "channel", "token", "none"]
Context = Literal["frame", "past", "all"]
TokenOrder = Literal["frequency", "time", "both"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "where": get_args(Where),
    "placement": get_args(Placement),
    "insertion": get_args(Insertion),
    "gate": get_args(Gate),
}

_LOADING = """
## Loading

Import `mambavox` first: the import is what makes this adapter's type known to PEFT.

```python
import mambavox  # noqa: F401
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "this folder")
```
"""


@dataclass
class AdapterConfig(PeftConfig):
    """What every adapter has: ``output = F(x) + gate * up(mixer(down(x)))`` around a frozen sublayer ``F``.

    A method is a subclass with its own fields, its mixer and a call of
    :func:`mambavox.adapters.registration.register_method`.

    Attributes:
        bottleneck_dim: width between the down and the up projection.
        where: which stacks of layers of the host get adapters.
        placement: which sublayers: the feed-forward one (in the literature "Pfeiffer"), attention, or both
            ("Houlsby").
        insertion: ``"parallel"`` reads the sublayer's input (in a pre-norm host the layer norm's output),
            ``"sequential"`` its output; either adds to the output.
        sharing: which adapters share one pair of projections (one pair for each width, where encoder and decoder
            differ). ``"all"`` of the host; ``"placement"``: those at feed-forward sublayers share one pair, those at
            attention another; ``"groups:<k>"``: the adapted layers of each stack fall into k runs of neighbours, each
            with a pair; ``"none"``: each has its own; ``"low-rank-delta:<r>"``: one pair for all, and each adapter
            adds its own correction of rank r to both, which starts at zero.
        gate: what the branch is multiplied with. ``"scalar"``: a number for each adapter (the paper's alpha);
            ``"channel"``: a vector over the host's channels; ``"token"``: ``sigmoid(w . down(x) + b)``, a number for
            each token, with ``w`` zero at first; ``"none"``: no gate.
        scale_init: the gate's first value, at every channel and token; between 0 and 1 for ``gate="token"``.
        train_norms: also train a copy of the norm that feeds each adapted sublayer, and of the norm that ends the
            stack.
        dropout: probability, after the mixer. The paper's code has 0.1 that never acts, because it keeps the
            encoder in evaluation mode while training.
        target_modules: adapt only those of the chosen sublayers whose name matches (a regular expression for the
            whole name, or a list of names or endings).
        exclude_modules: leave those sublayers and norms out.
        modules_to_save: further modules to train and save whole, such as the classification head.
        layers_to_transform: indices of the layers that get adapters; all without it.

    Raises:
        ConfigError: a value that is unknown or does not fit.

    Source:
        MambAdapter (arXiv 2606.15638), equation 3; Houlsby et al. 2019 (arXiv 1902.00751); Pfeiffer et al. 2021
        (arXiv 2005.00247); He et al. 2022 on parallel insertion (arXiv 2110.04366).
    """

    method: ClassVar[str]
    """The type under which PEFT knows the method, in upper case."""
    norm_input: ClassVar[bool] = False
    """Whether each adapter has a layer norm before the down projection."""

    bottleneck_dim: int = 12
    where: Where = "encoder"
    placement: Placement = "ffn"
    insertion: Insertion = "parallel"
    sharing: str = "all"
    gate: Gate = "scalar"
    scale_init: float = 0.1
    train_norms: bool = True
    dropout: float = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self.peft_type = PeftType(self.method)
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"):
            value = getattr(self, name)
            if isinstance(value, set | tuple):
                setattr(self, name, sorted(value))
        for name, choices in _CHOICES.items():
            self._check_choice(name, choices)
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
        if self.where != "encoder" and self.context() == "all":
            raise ConfigError(
                f"where is {self.where!r}, and this adapter lets a frame see those after it, which a decoder has not "
                "decoded yet; expected where='encoder', or a causal adapter (mixer='mamba' or 'mamba2')"
            )
        if self.task_type in ("SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS"):
            raise ConfigError(
                f"task_type is {self.task_type!r}; expected none: with it PEFT calls the host with input_ids, which "
                "audio models do not take. Leave task_type out"
            )

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 1")

    def context(self) -> Context:
        """Which frames an output frame of the mixer depends on: its own, also those before it, or all of its row.

        Unless it is ``"frame"``, the mixer is called with ``(hidden_states, lengths)``: ``lengths (batch,)``, the valid
        frames of each row, or none where all are; valid frames must not depend on what lies beyond. A decoder takes no
        ``"all"``, and nothing but ``"frame"`` when it decodes frame by frame.
        """
        return "frame"

    def down_features(self) -> int:
        """What the down projection puts out; ``bottleneck_dim`` unless the mixer starts wider."""
        return self.bottleneck_dim

    @abstractmethod
    def make_mixer(self, tokens: TokenGrid) -> nn.Module:
        """A new mixer, ``(batch, time, down_features)`` to ``(batch, time, bottleneck_dim)``, initialised.

        Args:
            tokens: layout of the host's tokens.
        """

    def layer_is_chosen(self, layer: int) -> bool:
        """Whether ``layers_to_transform`` lets this layer have adapters."""
        chosen = self.layers_to_transform
        if chosen is None:
            return True
        return layer in cast(Sequence[int], [chosen] if isinstance(chosen, int) else chosen)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save as PEFT does, and say in the folder's ``README.md`` how to load the adapter."""
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else "---\nlibrary_name: peft\n---\n"
        if "import mambavox" not in text:
            card.write_text(text.rstrip("\n") + "\n" + _LOADING, encoding="utf-8")


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
