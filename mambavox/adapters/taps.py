"""Hooks that hand what a host passes between its modules to the adapters that need it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mambavox.adapters.hosts import attention_cache, window_lengths

if TYPE_CHECKING:
    from mambavox.adapters.sublayer import SublayerAdapter


class InputTap:
    """Forward pre-hook that hands a module's input to a sublayer's adapter.

    Args:
        layer: the adapter.
    """

    def __init__(self, layer: "SublayerAdapter") -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Keep the input where an active adapter will read it."""
        if self.layer.acting("branch"):
            self.layer.tapped = args[0]


@dataclass
class AttentionCall:
    """What a layer's self-attention was called with, as far as an adapter in the layer needs it.

    Attributes:
        mask: its attention mask, if any.
        padding: ``(batch,)`` frames of padding at the end of each row of a windowed encoder.
        cache: the decoder's key-value cache, if any.
    """

    mask: Any
    padding: Tensor | None
    cache: Any


WINDOW_PADDING = "window_padding"
"""Keyword by which a windowed encoder passes the padding of its rows through its layers to their attention."""


class AttentionTap:
    """Forward pre-hook on a layer's self-attention that hands what it is called with to an adapter in the same layer.

    It is not a hook on the whole stack: with gradient checkpointing a layer runs again in the backward pass, perhaps
    after the stack has seen another batch, and what it is called with then is of its own.

    Args:
        layer: the adapter.
    """

    def __init__(self, layer: "SublayerAdapter") -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep it where an acting adapter will read it."""
        if self.layer.is_temporal():
            cache = attention_cache(kwargs) if self.layer.sublayer.stack.kind == "decoder" else None
            self.layer.call = AttentionCall(
                kwargs.get("attention_mask", kwargs.get("lengths")), kwargs.get(WINDOW_PADDING), cache
            )


class WindowTap:
    """Forward pre-hook on a windowed encoder that tells its layers how much of each row is padding.

    Args:
        layer: an adapter in the encoder.
    """

    def __init__(self, layer: "SublayerAdapter") -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add a keyword where an acting adapter will read it and no other has added it."""
        if WINDOW_PADDING in kwargs or not self.layer.is_temporal():
            return None
        features = args[0] if args else kwargs["input_features"]
        # The second of the two convolutions before the layers halves the frames.
        padding = features.shape[-1] // 2 - (window_lengths(features) + 1) // 2
        return args, {**kwargs, WINDOW_PADDING: padding}
