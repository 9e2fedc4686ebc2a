"""What one run of ``mambavox adapt --task whisper`` does."""

from dataclasses import dataclass
from typing import ClassVar

from mambavox.errors import ConfigError
from mambavox.runs.config import TranscriptConfig, data_name
from mambavox.runs.fields import option


@dataclass(frozen=True, kw_only=True)
class WhisperConfig(TranscriptConfig, backbone="openai/whisper-small", epochs=15, batch_size=6, eval_batch_size=16):
    """Configuration of one adaptation of Whisper to a language.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range, or two values contradict each other.
    """

    task: ClassVar[str] = "whisper"

    language_like: str | None = option(
        None,
        "Language whose token a new language's token starts as.",
        group="Model",
        unset="the mean of all that the model knows",
    )
    trim_encoder: bool = option(
        False,
        "Encode no more than the longest clip of a batch: faster, but not what Whisper was trained for.",
        group="Training",
    )
    final_learning_rate: float = option(
        0.0, "Learning rate at the end, to which it falls linearly.", group="Training", at_least=0
    )
    spec_augment: bool = option(False, "Mask random frames and mel bands in training.", group="Training")
    max_new_tokens: int | None = option(
        None,
        "Most tokens that are generated for a recording.",
        group="Evaluation",
        unset="one and a half times as many as the longest transcript has",
        at_least=1,
    )
    num_beams: int = option(1, "Beams of the search; 1 is greedy.", group="Evaluation", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_longer_than is not None and self.drop_longer_than < self.min_seconds:
            raise ConfigError(f"drop_longer_than={self.drop_longer_than:g} is below min_seconds={self.min_seconds:g}")
        if self.final_learning_rate >= self.peak_learning_rate:
            raise ConfigError(
                f"final_learning_rate={self.final_learning_rate:g} is not below learning_rate="
                f"{self.peak_learning_rate:g}"
            )
        if self.language_like is not None and self.language is None:
            raise ConfigError(
                f"language_like={self.language_like} says how a new language starts; give --language, too"
            )

    def name_parts(self) -> list[str | None]:
        """The data, the language and the method."""
        return [data_name(self.given_data), self.language, self.method]
