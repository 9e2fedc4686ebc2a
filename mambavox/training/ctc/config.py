"""What one run of ``mambavox adapt --task ctc`` does."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mambavox.errors import ConfigError
from mambavox.runs.config import TranscriptConfig, data_name
from mambavox.runs.fields import option


@dataclass(frozen=True, kw_only=True)
class CtcConfig(
    TranscriptConfig,
    method="full",
    epochs=30,
    batch_size=8,
    warmup_ratio=0.1,
    length_buckets=True,
    drop_longer_than=20.0,
):
    """Configuration of one CTC training.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range, or two values contradict each other.
    """

    task: ClassVar[str] = "ctc"

    vocabulary: Literal["characters", "bpe"] = option(
        "characters", "Tokens: characters, or pieces of words (bpe).", group="Model"
    )
    vocabulary_size: int = option(500, "Tokens of a bpe vocabulary.", group="Model", at_least=1)
    train_front: bool = option(False, "Train the convolutional feature extractor, too (method full).", group="Training")
    frozen_ratio: float = option(
        0.0,
        "Share of the updates, at the start, in which the head alone is trained (method full).",
        group="Training",
        at_least=0,
        below=1,
    )
    hold_ratio: float = option(
        0.4,
        "Share of the updates at the peak learning rate; an exponential decay to 5 % follows.",
        group="Training",
        at_least=0,
        below=1,
    )
    mask_prob: float = option(
        0.5,
        "Share of the frames that masked spans would cover if they never overlapped.",
        group="Training",
        at_least=0,
        at_most=1,
    )
    mask_length: int = option(10, "Frames of a masked span.", group="Training", at_least=1)
    mask_channel_prob: float = option(
        0.1, "The share of the channels that masked spans would cover.", group="Training", at_least=0, at_most=1
    )
    mask_channel_length: int = option(64, "Channels of a masked span.", group="Training", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_ratio + self.hold_ratio >= 1:
            raise ConfigError(
                f"warmup_ratio={self.warmup_ratio:g} and hold_ratio={self.hold_ratio:g}; expected less than 1 together"
            )
        if self.method != "full" and (self.frozen_ratio or self.train_front):
            raise ConfigError(f"frozen_ratio and train_front are of method full; method={self.method}: leave them out")

    def name_parts(self) -> list[str | None]:
        """The task and the data."""
        return ["ctc", data_name(self.given_data)]
