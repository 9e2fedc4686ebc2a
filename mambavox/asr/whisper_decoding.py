"""How a Whisper's text is searched, when a search has failed, and what is done about endless repetition."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import StoppingCriteria

from mambavox.errors import ConfigError

Task: TypeAlias = Literal["transcribe", "translate"]
"""What a Whisper writes: what is said, or that in English."""

_LONGEST_CYCLE = 32
_CHECKED_EVERY = 4  # tokens


@dataclass(frozen=True, kw_only=True)
class WhisperDecoding:
    """How a text is searched. Without changes: greedily, once, as transformers does.

    Attributes:
        num_beams: beams of the search; 1 is greedy.
        temperatures: the first is searched with (0: the likeliest text; above: drawn at random, the same on every
            call); each further one where the text before it fails a threshold or repeats itself without end. Where
            all fail, the likeliest is kept.
        compression_ratio_threshold: a text that zlib shrinks by more fails; ``None``: none does.
        logprob_threshold: a text whose tokens have a lower mean log probability fails; ``None``: none does.
        no_speech_threshold: where "no speech" has a higher probability, and the text fails ``logprob_threshold`` (or
            there is none), nothing is said; ``None``: always something is.
        prompt: text that comes before, in whose words and style the transcript goes on.
        task: ``"transcribe"``, or ``"translate"`` into English.

    Raises:
        ConfigError: a value lies outside its range.
    """

    num_beams: int = 1
    temperatures: tuple[float, ...] = (0.0,)
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    prompt: str = ""
    task: Task = "transcribe"

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ConfigError(f"num_beams={self.num_beams}; expected at least 1")
        if not self.temperatures or any(not 0 <= value <= 2 for value in self.temperatures):
            raise ConfigError(f"temperatures={self.temperatures}; expected at least one, each from 0 to 2")
        if self.no_speech_threshold is not None and not 0 <= self.no_speech_threshold <= 1:
            raise ConfigError(f"no_speech_threshold={self.no_speech_threshold}; expected a probability, from 0 to 1")
        if self.task not in ("transcribe", "translate"):
            raise ConfigError(f"task={self.task}; expected transcribe or translate")

    @property
    def judges(self) -> bool:
        """Whether the probability of a text matters."""
        return self.logprob_threshold is not None or self.no_speech_threshold is not None

    def is_silent(self, no_speech: float, logprob: float) -> bool:
        """Whether nothing is said where a text was found."""
        if self.no_speech_threshold is None or no_speech <= self.no_speech_threshold:
            return False
        return self.logprob_threshold is None or logprob < self.logprob_threshold

    def fails(self, text: str, logprob: float) -> bool:
        """Whether a text is to be searched with the next temperature."""
        return self.repeats(text) or (self.logprob_threshold is not None and logprob < self.logprob_threshold)

    def repeats(self, text: str) -> bool:
        """Whether a text shrinks by more than the threshold."""
        ratio = self.compression_ratio_threshold
        return ratio is not None and compression_ratio(text) > ratio


CAREFUL = WhisperDecoding(
    temperatures=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    compression_ratio_threshold=2.4,
    logprob_threshold=-1.0,
    no_speech_threshold=0.6,
)
"""As Whisper's authors transcribe: what fails is searched again, and silence is left out."""


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes a text; text that repeats itself shrinks most.

    Each character counts as one byte, whatever its script: in UTF-8 every text in Ge'ez or Devanagari would shrink as
    if it repeated itself.
    """
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    if not letters:
        return 1.0
    width = 1 if len(letters) <= 256 else 2
    coded = b"".join(letters[letter].to_bytes(width, "big") for letter in text)
    content = text.encode() if text.isascii() else coded
    return len(content) / len(zlib.compress(content))


def _repeats(period: int) -> int:
    """How often a cycle of some tokens has to come for it to be taken for endless."""
    return max(6, math.ceil(20 / period))


class RepetitionGuard(StoppingCriteria):
    """Ends the rows of a generation that repeat themselves: a cycle of up to 32 tokens, six times or more.

    Args:
        timestamp_begin: the first timestamp; all count as one. ``None`` where there are none.
    """

    def __init__(self, timestamp_begin: int | None = None) -> None:
        self.timestamp_begin = timestamp_begin

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are to end."""
        length = input_ids.shape[1]
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if length % _CHECKED_EVERY:
            return ended
        ids = input_ids if self.timestamp_begin is None else input_ids.clamp(max=self.timestamp_begin)
        for period in range(1, _LONGEST_CYCLE + 1):
            if (span := period * _repeats(period)) <= length:
                tail = ids[:, -span:]
                ended |= (tail[:, period:] == tail[:, :-period]).all(1)
        return ended


def without_repetition(tokens: Sequence[int], timestamp_begin: int | None = None) -> tuple[list[int], bool]:
    """Generated tokens whose endless repetition, if they end in one, is cut down to its first round.

    Args:
        tokens: of one row, without what fills it up.
        timestamp_begin: the first timestamp; all count as one.

    Returns:
        The tokens, and whether there was something to cut.
    """
    ids = list(tokens) if timestamp_begin is None else [min(token, timestamp_begin) for token in tokens]
    for period in range(1, _LONGEST_CYCLE + 1):
        start = len(ids)
        while start > period and ids[start - 1] == ids[start - 1 - period]:
            start -= 1
        # From here on each token equals the one a period before.
        if len(ids) - start + period >= period * _repeats(period):
            return list(tokens[:start]), True
    return list(tokens), False


def repeated_line(repeats: int, recordings: int) -> str:
    """How many transcripts repeated themselves, for the user."""
    return f"{repeats} of {recordings} transcripts repeated themselves without end and were cut behind the first round"
