"""The bottleneck adapter."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mambavox.adapters.config import AdapterConfig, Sharing


@dataclass
class BottleneckConfig(AdapterConfig):
    """Bottleneck adapter: GELU between each adapter's own projections, no scale.

    Source:
        Houlsby et al. 2019 (arXiv 1902.00751), in the parallel form of the MambAdapter paper's baseline. That
        code's predecessor starts every tensor at zero, which leaves all but the up projection's bias without a
        gradient; here only the up projection starts at zero.
    """

    temporal: ClassVar[bool] = False
    method: ClassVar[str] = "BOTTLENECK"

    sharing: Sharing = "none"
    learn_scale: bool = False

    def make_mixer(self) -> nn.Module:
        """A GELU."""
        return nn.GELU()
