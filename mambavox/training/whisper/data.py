"""Transcribed recordings as Whisper's inputs and targets."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mambavox.asr.text import UNSPACED, language_code
from mambavox.data import Example
from mambavox.data.columns import listed
from mambavox.errors import DataError
from mambavox.training.features import FeatureDataset
from mambavox.training.front_end import FrontEnd

IGNORED = -100
"""Target that adds nothing to the loss."""


class TranscriptDataset(FeatureDataset):
    """Features of each recording and the tokens of its transcript.

    Args:
        examples: the recordings.
        texts: what is said in each, as it is to be written.
        front_end: makes the features.
        prefix: tokens with which every transcript begins.
        tokenizer: of the model.
        max_tokens: tokens that the decoder takes.
        options: further keywords of :class:`FeatureDataset`.

    Attributes:
        texts: as given.

    Raises:
        DataError: a transcript is too long.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        texts: Sequence[str],
        front_end: FrontEnd,
        *,
        prefix: Sequence[int],
        tokenizer: Any,
        max_tokens: int,
        **options: Any,
    ) -> None:
        super().__init__(examples, None, front_end, **options)
        self.texts = texts
        ends = [tokenizer.eos_token_id]
        # Nothing is said in an empty transcript: the decoder learns to end at once.
        encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        self.tokens = [[*prefix, *ids, *ends] for ids in encoded]
        long = [example.name for example, ids in zip(examples, self.tokens, strict=True) if len(ids) > max_tokens]
        if long:
            raise DataError(
                f"transcripts of {len(long)} recordings have more than the {max_tokens} tokens that the decoder takes: "
                f"{listed(long)}; cut those recordings into shorter ones, or leave them out with --on-error skip"
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``features`` and ``tokens`` of one recording.

        Raises:
            AudioError: the recording cannot be read.
        """
        return {**super().__getitem__(index), "tokens": self.tokens[index]}


class TranscriptCollator:
    """Makes a batch of a :class:`TranscriptDataset`'s items: the model's keyword arguments.

    The first token, with which every decoder begins, is no target: transformers puts it before the labels.

    Args:
        front_end: batches the features.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end = front_end

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Batch some items."""
        batch = self.front_end.collate([item["features"] for item in items])
        targets = [torch.tensor(item["tokens"][1:]) for item in items]
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        return batch


def as_written(texts: Sequence[str], language: str | None) -> list[str]:
    """Transcripts as Whisper writes them: with a space before the first word, where words have spaces between them."""
    spaced = language_code(language) not in UNSPACED
    return [f" {text}" if text and spaced else text for text in texts]
