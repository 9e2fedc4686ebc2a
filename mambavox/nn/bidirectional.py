"""Mamba in both directions of time."""

from typing import Any

import torch
from torch import Tensor, nn

from mambavox.errors import ConfigError
from mambavox.lengths import clear_padding
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


class DirectedScan(Mamba):
    """What stands between the projections of a Mamba block, in one direction of time; the projections are not its own.

    Args:
        d_model: width of the block around it.
        options: the other arguments of :class:`Mamba`.
        reverse: go through each row from its own last valid frame to its first.

    Raises:
        ConfigError: as :class:`Mamba`.
    """

    def __init__(self, d_model: int, *, reverse: bool, **options: Any) -> None:
        super().__init__(d_model, **options)
        del self.in_proj, self.out_proj
        self.reverse = reverse

    def forward(self, projected: Tensor, lengths: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Convolve, scan and gate.

        Args:
            projected: ``(batch, time, 2 * d_inner)`` input and gate.
            lengths: ``(batch,)`` valid frames of each row.

        Returns:
            ``(batch, time, d_inner)``.
        """
        y, _ = self._mix(projected, lengths, None, self.reverse)
        return y


class InnBiMamba(nn.Module):
    """One pair of projections around two convolutions and scans, one for each direction: the sum of the two.

    ``(x, z) = in_proj(h)``; ``out_proj(forward_scan(x, z) + backward_scan(x, z))``. The second goes through each row
    from its own last valid frame to its first, so that neither the padding nor the other rows of a batch change a
    result.

    Args:
        d_model: width of the input and output.
        bias: whether ``in_proj`` and ``out_proj`` have biases.
        device: where the parameters are made.
        dtype: dtype of the parameters.
        options: the other arguments of :class:`Mamba`, for both directions.

    Raises:
        ConfigError: as :class:`Mamba`.

    Source:
        Mamba-based HuBERT (arXiv 2506.12606), "InnBiMamba": shared projections; the inner form of Vision Mamba (Zhu et
        al. 2024, arXiv 2401.09417, Algorithm 1).
    """

    def __init__(
        self,
        d_model: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.forward_scan = DirectedScan(d_model, reverse=False, device=device, dtype=dtype, **options)
        self.backward_scan = DirectedScan(d_model, reverse=True, device=device, dtype=dtype, **options)
        d_inner = self.forward_scan.d_inner
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias, device=device, dtype=dtype)

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
        if hidden_states.dim() != 3 or hidden_states.shape[-1] != self.d_model:
            raise ConfigError(
                f"hidden_states has shape {tuple(hidden_states.shape)}; expected (batch, time, d_model={self.d_model})"
            )
        if lengths is not None:
            hidden_states = clear_padding(hidden_states, lengths)
        projected = self.in_proj(hidden_states)
        return self.out_proj(self.forward_scan(projected, lengths) + self.backward_scan(projected, lengths))
