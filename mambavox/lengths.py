"""Sequences of different lengths in one tensor: padded batches and packed batches.

A row of a padded batch holds ``lengths[row]`` valid frames, then padding. A packed batch is one row in which sequences
lie end to end, sequence ``i`` in frames ``cu_seqlens[i] .. cu_seqlens[i + 1]`` (cumulative lengths, as in
flash-attention).
Everything here works on frames; which frames belong to which samples or seconds is the front end's affair.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit._trace import is_tracing

from mambavox.errors import ConfigError


def check_lengths(lengths: Tensor, batch: int, time: int) -> Tensor:
    """Validate row lengths.

    Args:
        lengths: ``(batch,)`` integer number of valid frames in each row, each in ``0..time``.
        batch: expected number of rows.
        time: number of frames of the padded batch.

    Returns:
        The lengths as ``int64``, all in ``0..time``: where their values cannot be looked at (in ``torch.compile``, in a
        trace, on another device) those outside take the nearest value inside.

    Raises:
        ConfigError: wrong shape, a non-integer dtype, or (where it can be looked at) a value outside ``0..time``.
    """
    if lengths.shape != (batch,):
        raise ConfigError(f"lengths has shape {tuple(lengths.shape)}; expected ({batch},), one number a row")
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ConfigError(f"lengths has dtype {lengths.dtype}; expected an integer dtype (frames)")
    if not _can_be_looked_at(lengths):
        return lengths.to(torch.int64).clamp(0, time)
    if batch:
        # As a list: two reductions take longer than the scan of a short sequence.
        frames = lengths.tolist()
        if min(frames) < 0 or max(frames) > time:
            raise ConfigError(f"lengths lie in {min(frames)}..{max(frames)}; expected 0..{time}, the number of frames")
    return lengths.to(torch.int64)


def length_mask(lengths: Tensor, time: int) -> Tensor:
    """Boolean mask of the valid frames.

    Args:
        lengths: ``(batch,)`` valid frames in each row.
        time: number of frames of the padded batch.

    Returns:
        ``(batch, time)``, true where the frame lies inside its row's length.
    """
    return torch.arange(time, device=lengths.device)[None, :] < lengths[:, None]


def clear_padding(tensor: Tensor, lengths: Tensor) -> Tensor:
    """Put zeros in the padding, whatever it holds: not even NaN there can reach a result or a gradient.

    Args:
        tensor: ``(batch, time, channels)``.
        lengths: ``(batch,)`` valid frames of each row.

    Returns:
        The same shape.

    Raises:
        ConfigError: as :func:`check_lengths`.
    """
    batch, time, _ = tensor.shape
    lengths = check_lengths(lengths, batch, time).to(tensor.device)
    return tensor.masked_fill(~length_mask(lengths, time)[:, :, None], 0.0)


def check_cu_seqlens(cu_seqlens: Tensor, batch: int, time: int) -> Tensor:
    """Validate the boundaries of a packed batch.

    Args:
        cu_seqlens: ``(sequences + 1,)`` integer first frame of each sequence, then the number of frames.
        batch: number of rows of the packed tensors.
        time: their number of frames.

    Returns:
        The boundaries as ``int64``, rising from 0 to ``time``: where their values cannot be looked at those that do not
        are moved.

    Raises:
        ConfigError: more than one row, wrong shape, a non-integer dtype, or (where they can be looked at) boundaries
            that do not rise from 0 to ``time``.
    """
    if batch != 1:
        raise ConfigError(f"cu_seqlens is given and batch is {batch}; expected a packed batch of one row")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ConfigError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; expected (sequences + 1,), at least (2,)")
    if cu_seqlens.is_floating_point() or cu_seqlens.dtype == torch.bool:
        raise ConfigError(f"cu_seqlens has dtype {cu_seqlens.dtype}; expected an integer dtype (frames)")
    if not _can_be_looked_at(cu_seqlens):
        inside = cu_seqlens[1:-1].to(torch.int64).clamp(0, time)
        inside = inside.cummax(0).values if len(inside) else inside
        return F.pad(F.pad(inside, (1, 0)), (0, 1), value=time)
    falls = bool((cu_seqlens[1:] < cu_seqlens[:-1]).any())
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != time or falls:
        raise ConfigError(f"cu_seqlens is {cu_seqlens.tolist()}; expected numbers rising from 0 to {time}, the frames")
    return cu_seqlens.to(torch.int64)


def _can_be_looked_at(numbers: Tensor) -> bool:
    """Whether the values are known now and without waiting for a device."""
    return numbers.device.type == "cpu" and not torch.compiler.is_compiling() and not is_tracing()


def check_rows(x: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Validate what says where the sequences of a batch lie: lengths, boundaries or neither.

    Args:
        x: ``(batch, time, ...)``, the batch.
        lengths: ``(batch,)`` valid frames of each row of a padded batch.
        cu_seqlens: ``(sequences + 1,)`` boundaries of a packed one.

    Returns:
        Both as ``int64`` on the device of ``x``.

    Raises:
        ConfigError: both are given, or as :func:`check_lengths` and :func:`check_cu_seqlens`.
    """
    if lengths is not None:
        if cu_seqlens is not None:
            raise ConfigError(
                "lengths and cu_seqlens are both given; lengths are for padded, cu_seqlens for packed batches"
            )
        return check_lengths(lengths, *x.shape[:2]).to(x.device), None
    if cu_seqlens is not None:
        return None, check_cu_seqlens(cu_seqlens, *x.shape[:2]).to(x.device)
    return None, None


def unpack(packed: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Packed to padded batch.

    Args:
        packed: ``(1, time, channels)``.
        cu_seqlens: ``(sequences + 1,)``.

    Returns:
        ``(sequences, longest, channels)``, zero beyond each sequence's length.
    """
    if is_tracing():
        raise ConfigError("cu_seqlens cannot be traced here: the boundaries of this input would stay in the trace")
    pieces = packed[0].split((cu_seqlens[1:] - cu_seqlens[:-1]).tolist())
    return torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)


def pack(padded: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Inverse of ``unpack``: ``(sequences, longest, channels)`` to ``(1, time, channels)``."""
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
    return torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])[None]


def reverse_inside(tensor: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse each row's own frames and leave its padding where it is.

    Args:
        tensor: ``(batch, time, channels)``.
        lengths: ``(batch,)`` valid frames of each row; all of them where not given.
    """
    if lengths is None:
        return tensor.flip(1)
    frames = torch.arange(tensor.shape[1], device=tensor.device)[None, :]
    source = torch.where(frames < lengths[:, None], lengths[:, None] - 1 - frames, frames)
    return tensor.gather(1, source[:, :, None].expand_as(tensor))


def compact(tensor: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Move the valid frames of each row to its start, in their order, wherever its padding lies.

    Args:
        tensor: ``(batch, time, channels)``.
        valid: ``(batch, time)``, true at valid frames.

    Returns:
        The same shape, padding at the end, and ``(batch,)`` the number of valid frames.
    """
    order = valid.int().argsort(dim=1, descending=True, stable=True)
    return tensor.gather(1, order[:, :, None].expand_as(tensor)), valid.sum(1)


def spread(tensor: Tensor, valid: Tensor) -> Tensor:
    """Inverse of ``compact``: each frame back to its place.

    Args:
        tensor: ``(batch, time, channels)``.
        valid: ``(batch, time)``, true at valid frames.
    """
    place = valid.int().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return tensor.gather(1, place[:, :, None].expand_as(tensor))
