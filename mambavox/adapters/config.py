"""Configurations of the adapters: what is inserted where, and what is shared."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

from peft import PeftConfig, PeftType
from torch import nn

from mambavox.errors import ConfigError

Where = Literal["encoder", "decoder", "both"]
Placement = Literal["ffn", "attention", "both"]
Insertion = Literal["parallel", "sequential"]
Sharing = Literal["all", "none"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "where": get_args(Where),
    "placement": get_args(Placement),
    "insertion": get_args(Insertion),
    "sharing": get_args(Sharing),
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
    """What every adapter has: ``output = F(x) + scale * up(mixer(down(x)))`` around a frozen sublayer ``F``.

    A method is a subclass with its own fields, its mixer and a call of
    :func:`mambavox.adapters.registration.register_method`.

    Attributes:
        bottleneck_dim: width between the down and the up projection.
        where: which stacks of layers of the host get adapters.
        placement: which sublayers: the feed-forward one (in the literature "Pfeiffer"), attention, or both
            ("Houlsby").
        insertion: ``"parallel"`` reads the sublayer's input (in a pre-norm host the layer norm's output),
            ``"sequential"`` its output; either adds to the output.
        sharing: ``"all"`` adapters of the host share one pair of projections (one pair for each width, where
            encoder and decoder differ), ``"none"``: each has its own.
        learn_scale: a learnable scalar for each adapter; without it there is no scale at all.
        scale_init: its first value; has no effect without ``learn_scale``.
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

    temporal: ClassVar[bool]
    """Whether the mixer lets one frame see others; then a decoder cannot be run frame by frame without its state."""
    method: ClassVar[str]
    """The type under which PEFT knows the method, in upper case."""

    bottleneck_dim: int = 12
    where: Where = "encoder"
    placement: Placement = "ffn"
    insertion: Insertion = "parallel"
    sharing: Sharing = "all"
    learn_scale: bool = True
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
        if self.learn_scale and not (math.isfinite(self.scale_init) and self.scale_init != 0):
            raise ConfigError(
                f"scale_init is {self.scale_init!r}; expected a finite number other than 0: at 0, with the up "
                "projection at 0 too, no gradient would ever flow"
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

    @abstractmethod
    def make_mixer(self) -> nn.Module:
        """A new mixer, ``(batch, time, bottleneck_dim)`` to the same shape, initialised."""

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
