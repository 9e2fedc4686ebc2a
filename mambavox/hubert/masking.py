"""Which frames pre-training hides."""

import torch
from torch import Tensor

from mambavox.errors import ConfigError
from mambavox.lengths import check_lengths


def sample_span_mask(
    lengths: Tensor,
    time: int,
    mask_prob: float = 0.8,
    mask_length: int = 10,
    min_masks: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample spans of frames to hide, row by row.

    A row of ``length`` frames gets ``mask_prob * length / mask_length`` spans, rounded up or down at random so that
    the expectation is that number, each with its own start; they may overlap. A row shorter than a span gets none.
    All random numbers come from one generator on the CPU: its state, saved and restored, gives the same masks again.

    Args:
        lengths: ``(batch,)`` valid frames of each row.
        time: frames of the padded batch.
        mask_prob: expected share of frames that the spans would cover without overlaps.
        mask_length: frames of a span.
        min_masks: spans of a row, at least, as far as it has room for different starts.
        generator: where random numbers come from; torch's default one where not given.

    Returns:
        ``(batch, time)`` boolean, true where a frame is hidden, on the device of ``lengths``.

    Raises:
        ConfigError: a probability outside 0..1, a span without frames, or lengths that do not fit.

    Source:
        wav2vec 2.0 (arXiv 2006.11477), section 3.1, in the form HuBERT (arXiv 2106.07447) uses; unlike its code, rows
        of one batch are not cut to the same number of masked frames.
    """
    if not 0 <= mask_prob <= 1:
        raise ConfigError(f"mask_prob is {mask_prob}; expected a probability, 0 to 1")
    if mask_length < 1:
        raise ConfigError(f"mask_length is {mask_length}; expected at least 1 frame")
    valid = check_lengths(lengths.cpu(), len(lengths), time)
    mask = torch.zeros(len(lengths), time, dtype=torch.bool)
    span = torch.arange(mask_length)
    for row, length in enumerate(valid.tolist()):
        starts = length - mask_length + 1
        if starts < 1 or mask_prob == 0:
            continue
        rounding = torch.rand((), generator=generator).item()
        spans = max(int(mask_prob * length / mask_length + rounding), min_masks)
        chosen = torch.randperm(starts, generator=generator)[:spans]
        mask[row, (chosen[:, None] + span).flatten()] = True
    return mask.to(lengths.device)
