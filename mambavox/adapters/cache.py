"""What a mixer in a decoder remembers between two steps of generation: it lies in the key-value cache."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

from mambavox.errors import HostError
from mambavox.nn.streaming import MambaState

_WITHOUT_CACHE = "generate(use_cache=False), or adapt the encoder only (where='encoder')"


@dataclass
class DecodedState:
    """What one mixer remembers of the tokens that one layer of a key-value cache holds.

    Attributes:
        tokens: how many the mixer has seen of each row, padding included.
        state: of the mixer, a row for each of the cache's; none before the first token.
    """

    tokens: int = 0
    state: MambaState | None = None

    def reorder(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if self.state is not None:
            self.state = self.state.reorder(rows.to(self.state.conv.device))

    def take(self, rows: Tensor) -> "DecodedState":
        """The same of some rows, in which alone an adapter acts."""
        return DecodedState(self.tokens, None if self.state is None else self.state.reorder(rows))

    def put(self, rows: Tensor, own: "DecodedState", batch: int) -> None:
        """Replace what is remembered of some of ``batch`` rows."""
        if own.state is not None:
            whole = own.state.zeros(batch) if self.state is None else self.state
            self.state = whole.put(rows, own.state)


class CacheLayerWithMixers(DynamicLayer):
    """A layer of a key-value cache which also holds the states of the mixers beside its decoder layer.

    Whatever is done to the keys and values is done to the states: beam search reorders both, a copy copies both. A
    state cannot be taken back to an earlier token, so the layer cannot be cropped, which assisted generation does.

    Args:
        layer: takes the place of this one and takes over what it holds.
    """

    is_croppable = False

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.__dict__.update(layer.__dict__)
        self.mixers: dict[Any, DecodedState] = {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the chosen beams."""
        super().reorder_cache(beam_idx)
        self._reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        for mixer in self.mixers.values():
            if mixer.state is not None:
                rows = torch.arange(len(mixer.state.conv), device=mixer.state.conv.device)
                mixer.reorder(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._reorder(indices.nonzero().flatten() if indices.dtype == torch.bool else indices)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.mixers.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to remove tokens.

        Raises:
            HostError: there are tokens to remove.
        """
        # transformers means the tokens to remove by a negative number, its older versions those to keep by a positive.
        if tokens_to_remove < 0 or 0 < tokens_to_remove < self.get_seq_length():
            raise HostError(
                "tokens are to be removed from the key-value cache of a decoder with a temporal adapter, whose state "
                "cannot be taken back (assisted generation does so); expected generation without an assistant, "
                + _WITHOUT_CACHE
            )

    def _reorder(self, rows: Tensor) -> None:
        for mixer in self.mixers.values():
            mixer.reorder(rows)


def decoded_state(cache: Cache, layer: int, key: Any, batch: int, time: int) -> DecodedState:
    """What a mixer remembers of the tokens before those that a decoder layer is being called with.

    To be asked for once the layer's self-attention has put the new tokens into the cache.

    Args:
        cache: what the decoder layer was called with.
        layer: index of the decoder layer.
        key: names the mixer among those of the layer.
        batch: rows of the call.
        time: new tokens of the call.

    Returns:
        What the mixer is to go on from, and is to update; a new one for the first tokens in the cache.

    Raises:
        HostError: a kind of cache beside which no state can be carried, or one that was filled without the mixer.
    """
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    found = own.layers[layer]
    if type(found) is DynamicLayer:
        found = own.layers[layer] = CacheLayerWithMixers(found)
    if not isinstance(found, CacheLayerWithMixers):
        raise HostError(
            f"a decoder with a temporal adapter was given a key-value cache of {type(found).__name__}, beside which "
            "the adapter's state cannot be carried; expected the default, a dynamic cache (leave out "
            "cache_implementation), " + _WITHOUT_CACHE
        )
    before = found.get_seq_length() - time
    if before == 0:
        found.mixers[key] = DecodedState()
    carried = found.mixers.get(key, DecodedState())
    rows = batch if carried.state is None else len(carried.state.conv)
    if (carried.tokens, rows) != (before, batch):
        raise HostError(
            f"a temporal adapter in the decoder was given a key-value cache of {before} tokens in {batch} rows, of "
            f"which it has seen {carried.tokens} in {rows}: the cache was filled without this adapter, or was changed "
            "other than by transformers' own methods. Start with a new cache, or call " + _WITHOUT_CACHE
        )
    return carried
