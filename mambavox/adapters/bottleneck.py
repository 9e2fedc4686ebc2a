"""The bottleneck adapter."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mambavox.adapters.config import AdapterConfig, Gate
from mambavox.adapters.tokens import TokenGrid


@dataclass
class BottleneckConfig(AdapterConfig):
    """Bottleneck adapter: GELU between each adapter's own projections, no gate.

    Source:
        Houlsby et al. 2019 (arXiv 1902.00751), in the parallel form of the MambAdapter paper's baseline. That
        code's predecessor starts every tensor at zero, which leaves all but the up projection's bias without a
        gradient; here only the up projection starts at zero.
    """

    method: ClassVar[str] = "BOTTLENECK"

    sharing: str = "none"
    gate: Gate = "none"

    def make_mixer(self, tokens: TokenGrid) -> nn.Module:
        """A GELU."""
        return nn.GELU()
