"""When each word was said: the cross-attention of Whisper's alignment heads, and the cheapest way through it.

Source: OpenAI's ``whisper/timing.py``, whose steps these are; the text is read in one pass, after it has been found.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mambavox.asr.text import UNSPACED, language_code
from mambavox.asr.transcript import Word

FRAME_SECONDS = 0.02
"""Seconds of one frame of the encoder."""
_MEDIAN_WIDTH = 7
_LONGEST_WORD = 1.4  # seconds; what is longer holds a pause


class AlignmentHeads:
    """Records the cross-attention of the heads that follow the sound.

    Args:
        host: a ``WhisperForConditionalGeneration``. Its generation configuration names the heads; where it names none,
            all those of the upper half of the decoder are taken.
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        self._layers = host.get_decoder().layers
        config = host.config
        named = getattr(host.generation_config, "alignment_heads", None)
        self.heads: list[tuple[int, int]] = [(int(layer), int(head)) for layer, head in named or ()] or [
            (layer, head)
            for layer in range(config.decoder_layers // 2, config.decoder_layers)
            for head in range(config.decoder_attention_heads)
        ]

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Records the next forward pass.

        Yields:
            A list that the pass fills with ``(batch, heads, tokens, frames)`` of each layer.
        """
        found: list[Tensor] = []
        hooks = []
        for number, layer in enumerate(self._layers):
            heads = [head for other, head in self.heads if other == number]
            if heads:

                def keep(module: nn.Module, args: Any, output: Any, heads: list[int] = heads) -> None:
                    found.append(output[1][:, heads].float())

                hooks.append(layer.encoder_attn.register_forward_hook(keep))
        # Only the plain implementation gives the weights of its attention.
        before = self._host.config._attn_implementation
        self._host.set_attn_implementation("eager")
        try:
            yield found
        finally:
            self._host.set_attn_implementation(before)
            for hook in hooks:
                hook.remove()


def token_times(weights: Tensor, frames: int) -> NDArray[np.float64]:
    """When tokens begin.

    Args:
        weights: ``(heads, tokens, frames)`` attention by which each token was predicted, the end of the text among
            them.
        frames: of the encoder that hold sound.

    Returns:
        ``(tokens,)`` seconds, which never fall.
    """
    cut = weights[..., : max(frames, 1)]
    deviation, mean = torch.std_mean(cut, dim=-2, keepdim=True, correction=0)
    scaled = (cut - mean) / deviation.clamp(min=1e-9)
    edge = _MEDIAN_WIDTH // 2
    if scaled.shape[-1] > edge:
        scaled = functional.pad(scaled, (edge, edge), mode="reflect").unfold(-1, _MEDIAN_WIDTH, 1).median(-1).values
    entered = _cheapest_path(-scaled.mean(0).cpu().double().numpy())
    return entered.astype(np.float64) * FRAME_SECONDS


def _cheapest_path(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Column in which the cheapest monotonic path through ``(rows, columns)`` enters each row."""
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    came = np.zeros((rows + 1, columns + 1), dtype=np.int8)
    # Cells of one anti-diagonal do not depend on each other.
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        ways = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
        # As OpenAI's: of equal ways the last.
        best = 2 - ways[::-1].argmin(0)
        total[i, j] = costs[i - 1, j - 1] + ways[best, np.arange(len(i))]
        came[i, j] = best
    entered = np.zeros(rows, dtype=np.int64)
    i, j = rows, columns
    while i > 0:
        entered[i - 1] = j - 1
        way = came[i, j] if j > 1 else 1
        i, j = i - (way < 2), j - (way != 1)
    return entered


def words_of_tokens(
    tokens: Sequence[int],
    times: NDArray[np.float64],
    log_probs: Sequence[float],
    tokenizer: Any,
    language: str | None,
) -> tuple[Word, ...]:
    """Words of tokens, with punctuation at the words that it belongs to.

    Args:
        tokens: of the text.
        times: ``(tokens + 1,)`` seconds at which each begins, and at which the last ends.
        log_probs: of each token.
        tokenizer: Whisper's.
        language: code of the language, by which it is known whether there are spaces between words.
    """
    from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

    if not len(tokens):
        return ()
    spaced = language_code(language) not in UNSPACED
    texts, _, groups = _combine_tokens_into_words(tokenizer, list(tokens), "english" if spaced else "chinese")
    words: list[Word] = []
    for text, group in _whole_words(texts, groups) if spaced else zip(texts, groups, strict=True):
        if text.strip():
            # A full stop or comma takes the pause behind it.
            last = _last_letter(tokens, group, tokenizer)
            start, end = float(times[group[0]]), float(times[last + 1])
            confidence = float(np.exp(np.mean([log_probs[index] for index in group])))
            start, end = round(max(start, end - _LONGEST_WORD), 3), round(end, 3)
            words.append(Word(text.strip(), start, end, round(min(confidence, 1.0), 4)))
    return tuple(words)


def _whole_words(texts: Sequence[str], groups: Sequence[list[int]]) -> list[tuple[str, list[int]]]:
    """Words with what follows them without a space, such as the second half behind a hyphen."""
    words: list[tuple[str, list[int]]] = []
    for text, group in zip(texts, groups, strict=True):
        if words and not text.startswith(" ") and not words[-1][0].endswith(" "):
            words[-1] = (words[-1][0] + text, words[-1][1] + group)
        else:
            words.append((text, group))
    return words


def _last_letter(tokens: Sequence[int], group: Sequence[int], tokenizer: Any) -> int:
    """The last token of a word that is more than punctuation; the last one where all are."""
    for index in reversed(group):
        # What is no whole character alone, a part of a letter, has a replacement character.
        if any(character.isalnum() or character == "\ufffd" for character in tokenizer.decode([tokens[index]])):
            return index
    return group[-1]
