"""What every implementation of the selective scan is given."""

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """The arguments of :func:`mambavox.ops.selective_scan` that say what to compute, in its order.

    Attributes:
        x: ``(batch, time, d_inner)`` input.
        dt: ``(batch, time, d_inner)`` step sizes, before bias and softplus.
        A: ``(d_inner, d_state)`` continuous-time decay.
        B: ``(batch, time, d_state)`` input matrix of each frame.
        C: ``(batch, time, d_state)`` output matrix of each frame.
        D: ``(d_inner,)`` skip connection.
        z: ``(batch, time, d_inner)`` gate.
        dt_bias: ``(d_inner,)`` added to ``dt``.
        dt_softplus: pass ``dt`` (with its bias) through softplus.
        initial_state: ``(sequences, d_inner, d_state)`` state before the first frame.
        lengths: ``(batch,)`` int64, valid frames of each row.
        cu_seqlens: ``(sequences + 1,)`` int64, boundaries of packed sequences.
        reverse: go through each row from its last valid frame to its first.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    dt_softplus: bool
    initial_state: Tensor | None
    lengths: Tensor | None
    cu_seqlens: Tensor | None
    reverse: bool

    @property
    def sequences(self) -> int:
        """Rows of the state: those of the batch, or the packed sequences."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1
