"""Typed state that a block carries from one piece of a stream to the next."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MambaState:
    """What one Mamba or Mamba-2 block remembers of the frames it has seen.

    Attributes:
        conv: ``(batch, channels, d_conv - 1)`` the last inputs of the convolution, oldest first; channels are
            ``d_inner``, for Mamba-2 ``d_inner + 2 * ngroups * d_state``.
        ssm: the scan's state in float32, ``(batch, d_inner, d_state)``, for Mamba-2
            ``(batch, nheads, headdim, d_state)``.
    """

    conv: Tensor
    ssm: Tensor

    def reorder(self, rows: Tensor) -> "MambaState":
        """State of the rows chosen, in that order (beam search, streams that start and stop).

        Args:
            rows: ``(new_batch,)`` indices of rows.
        """
        return MambaState(self.conv.index_select(0, rows), self.ssm.index_select(0, rows))

    def put(self, rows: Tensor, state: "MambaState") -> "MambaState":
        """State in which some rows are replaced.

        Args:
            rows: ``(number,)`` indices of rows.
            state: what comes there.
        """
        return MambaState(self.conv.index_copy(0, rows, state.conv), self.ssm.index_copy(0, rows, state.ssm))

    def zeros(self, batch: int) -> "MambaState":
        """State before the first frame, of the same kind with so many rows."""
        shapes = ((batch, *part.shape[1:]) for part in (self.conv, self.ssm))
        conv, ssm = (part.new_zeros(shape) for part, shape in zip((self.conv, self.ssm), shapes, strict=True))
        return MambaState(conv, ssm)

    def detach(self) -> "MambaState":
        """The same state, cut from the graph (truncated back-propagation)."""
        return MambaState(self.conv.detach(), self.ssm.detach())

    def to(self, device: torch.device | str) -> "MambaState":
        """The same state on another device."""
        return MambaState(self.conv.to(device), self.ssm.to(device))
