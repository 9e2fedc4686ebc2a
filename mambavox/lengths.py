"""Lengths of padded batches: masks, and reversal inside each row's own length.

A row of a padded batch holds ``lengths[row]`` valid frames, then padding. Everything here works on frames;
which frames belong to which samples or seconds is the front end's affair.
"""

import torch
from torch import Tensor

from mambavox.errors import ConfigError


def check_lengths(lengths: Tensor, batch: int, time: int) -> Tensor:
    """Validate row lengths.

    Args:
        lengths: ``(batch,)`` integer number of valid frames in each row, each in ``0..time``.
        batch: expected number of rows.
        time: number of frames of the padded batch.

    Returns:
        The lengths as ``int64``.

    Raises:
        ConfigError: wrong shape, a non-integer dtype, or (outside ``torch.compile``) a value outside ``0..time``.
    """
    if lengths.shape != (batch,):
        raise ConfigError(f"lengths has shape {tuple(lengths.shape)}; expected ({batch},), one number a row")
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ConfigError(f"lengths has dtype {lengths.dtype}; expected an integer dtype (frames)")
    if not torch.compiler.is_compiling() and lengths.device.type == "cpu" and batch:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > time:
            raise ConfigError(f"lengths lie in {low}..{high}; expected 0..{time}, the number of frames")
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
