"""Rows of the token embeddings that PEFT trains, without a copy of the whole table at each step."""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn


class SparseTokenRows(TrainableTokensLayer):
    """PEFT's layer of trained rows with the same result, computed for these rows alone.

    PEFT's own copies the whole table with the rows put in, at each call of the embedding and of the output that is tied
    to it: for Whisper-small 160 MB, twice for each token that is generated.
    """

    def forward_adapters(self, x: Tensor, active_adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Embed tokens, or score them, with the adapters' rows in place of the host's."""
        base = self.get_base_layer()
        active = [name for name in active_adapters if name in self.trainable_tokens_delta]
        known = type(base) is nn.Linear or (type(base) is nn.Embedding and base.max_norm is None)
        if self.disable_adapters or self.merged or not active or not known:
            output: Tensor = super().forward_adapters(x, active, *args, **kwargs)
            return output
        self._check_overlapping_tokens(active)
        output = self.base_layer(x, *args, **kwargs)
        for name in active:
            rows = self.trainable_tokens_delta[name]
            if isinstance(base, nn.Linear):
                index = torch.tensor(self.token_indices[name], device=x.device)
                bias = None if base.bias is None else base.bias[index]
                output = output.index_copy(-1, index, F.linear(x, rows.to(x.dtype), bias).to(output.dtype))
            else:
                for token, row in zip(self.token_indices[name], rows, strict=True):
                    output = torch.where((x == token)[..., None], row.to(output.dtype), output)
        return output


def lighten_token_rows(model: nn.Module) -> None:
    """Let every layer of trained rows in a model compute as :class:`SparseTokenRows`; nothing saved or trained changes.

    Args:
        model: a PEFT model.
    """
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = SparseTokenRows
