"""How a host's tokens lie on time and frequency."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mambavox.errors import HostError


@dataclass(frozen=True)
class TokenGrid:
    """Layout of a stack's tokens: special tokens first, then a grid of frequency bands and time steps.

    A host of frames (Whisper, the wav2vec2 family) has one band and no special tokens: its tokens are in the order
    of time. AST's run through all time steps of the lowest band, then of the next.

    Attributes:
        special_tokens: how many tokens come before the grid.
        bands: how many frequency bands the grid has.
    """

    special_tokens: int = 0
    bands: int = 1

    def by_time(self, tokens: Tensor) -> Tensor:
        """From the host's order to all bands of the first time step, then of the next; special tokens stay first.

        Args:
            tokens: ``(batch, tokens, channels)``.

        Raises:
            HostError: the tokens do not fill the grid.
        """
        special, grid = self.split(tokens)
        return torch.cat([special, grid.transpose(1, 2).flatten(1, 2)], dim=1)

    def by_frequency(self, tokens: Tensor) -> Tensor:
        """Inverse of :meth:`by_time`."""
        special, patches = tokens[:, : self.special_tokens], tokens[:, self.special_tokens :]
        return torch.cat([special, patches.unflatten(1, (-1, self.bands)).transpose(1, 2).flatten(1, 2)], dim=1)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Special tokens and grid.

        Args:
            tokens: ``(batch, tokens, channels)`` in the host's order.

        Returns:
            ``(batch, special_tokens, channels)`` and ``(batch, bands, time, channels)``.

        Raises:
            HostError: the tokens do not fill the grid.
        """
        patches = tokens.shape[1] - self.special_tokens
        if patches < self.bands or patches % self.bands:
            raise HostError(
                f"an adapter was given {tokens.shape[1]} tokens; expected {self.special_tokens} special tokens and a "
                f"multiple of the {self.bands} frequency bands that the backbone's configuration says"
            )
        return tokens[:, : self.special_tokens], tokens[:, self.special_tokens :].unflatten(1, (self.bands, -1))
