"""Mamba in both directions of time."""

from typing import Any

from torch import Tensor, nn

from mambavox.nn.mamba import Mamba


class ExtBiMamba(nn.Module):
    """Two Mamba blocks with weights of their own, one for each direction: the sum of their outputs.

    The second goes through each row from its own last valid frame to its first, so that neither the padding nor the
    other rows of a batch change a result.

    Args:
        d_model: width of the input and output.
        options: the other arguments of :class:`Mamba`, for both blocks.

    Raises:
        ConfigError: as :class:`Mamba`.

    Source:
        Mamba-based HuBERT (arXiv 2506.12606), "ExtBiMamba": ``fwd(x) + flip(bwd(flip x))``.
    """

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__()
        self.forward_mamba = Mamba(d_model, **options)
        self.backward_mamba = Mamba(d_model, **options)

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Process a batch of sequences.

        Args:
            hidden_states: ``(batch, time, d_model)``.
            lengths: ``(batch,)`` valid frames of each row.

        Returns:
            ``(batch, time, d_model)``.

        Raises:
            ConfigError: shapes or lengths that do not fit.
        """
        return self.forward_mamba(hidden_states, lengths) + self.backward_mamba(hidden_states, lengths, reverse=True)
