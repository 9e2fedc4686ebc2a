"""Which phone is heard in each frame, as recognisers are told of synthesised speech."""

import zlib

import torch
import torch.nn.functional as F
from speech import Spoken
from torch import Tensor

PHONES = 509
"""Classes of phones: hashes of their symbols, of which there are about 200."""


def phone_classes(item: Spoken, frames: int) -> list[int]:
    """Class of the phone in each frame of 20 ms, -100 where it is not known."""
    found = [-100] * frames
    for symbol, start, end in item.phones:
        for frame in range(max(round(50 * start), 0), min(round(50 * end), frames)):
            found[frame] = zlib.crc32(symbol.encode()) % PHONES
    return found


def phone_loss(head: torch.nn.Linear, hidden_states: Tensor, classes: Tensor) -> Tensor:
    """Mean cross entropy of the frames whose phone is known; 0 where none is, as in a batch of real speech.

    Args:
        head: from hidden states to ``PHONES`` classes.
        hidden_states: ``(batch, time, hidden_size)``.
        classes: ``(batch, time)``, -100 where the phone is not known.
    """
    scores = head(hidden_states).float().transpose(1, 2)
    return F.cross_entropy(scores, classes, reduction="sum") / (classes >= 0).sum().clamp(min=1)
