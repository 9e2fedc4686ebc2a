"""Vocabularies of CTC models: characters or BPE pieces, trained from transcripts; the blank is the padding token."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Wav2Vec2CTCTokenizer

from mambavox.errors import ConfigError, DataError

BLANK = "<pad>"
"""Padding token and CTC blank; token 0 of the vocabularies made here."""
UNKNOWN = "<unk>"
DELIMITER = "|"
"""Stands between words in character vocabularies."""
_PIECE_MARK = "\u2581"  # begins the first piece of a word in BPE vocabularies


def train_tokenizer(texts: Iterable[str], kind: Literal["characters", "bpe"] = "characters", size: int = 500) -> Any:
    """A vocabulary of the transcripts of a training split.

    Args:
        texts: normalised transcripts.
        kind: one token a character, or pieces of words.
        size: tokens of a BPE vocabulary, at most; the special ones and all characters are among them.

    Returns:
        A ``Wav2Vec2CTCTokenizer`` or a ``PreTrainedTokenizerFast``; ``save_pretrained`` and
        ``AutoTokenizer.from_pretrained`` work as usual.

    Raises:
        DataError: the transcripts hold no character, or one that a vocabulary needs for itself.
        ConfigError: ``size`` is too small for the characters.
    """
    texts = list(texts)
    characters = Counter(character for text in texts for character in text if character != " ")
    if not characters:
        raise DataError("the training transcripts are empty; expected text to make a vocabulary of")
    for reserved in (DELIMITER, _PIECE_MARK):
        if reserved in characters:
            raise DataError(
                f"the training transcripts hold {reserved!r}, which separates words in vocabularies; take it out of "
                "them, or let them be normalised"
            )
    return _characters(sorted(characters)) if kind == "characters" else _pieces(texts, len(characters), size)


def _characters(characters: Sequence[str]) -> Wav2Vec2CTCTokenizer:
    vocabulary = {token: index for index, token in enumerate((BLANK, UNKNOWN, DELIMITER, *characters))}
    with tempfile.TemporaryDirectory() as folder:  # it is only made from a file
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            str(file),
            pad_token=BLANK,
            unk_token=UNKNOWN,
            word_delimiter_token=DELIMITER,
            # Without sentences there is nothing to begin or end.
            bos_token=None,
            eos_token=None,
        )


def _pieces(texts: list[str], characters: int, size: int) -> PreTrainedTokenizerFast:
    smallest = 3 + characters
    if size < smallest:
        raise ConfigError(f"vocabulary_size={size}; expected at least {smallest}: the characters and three others")
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_PIECE_MARK)
    tokenizer.decoder = decoders.Metaspace(replacement=_PIECE_MARK)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[BLANK, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=BLANK, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


@dataclass(frozen=True)
class Vocabulary:
    """What decoding needs to know of a tokenizer.

    Attributes:
        tokens: text of each token, by its number; empty for special ones.
        blank: number of the CTC blank.
        unknown: number of the token for what the vocabulary lacks, if there is one.
    """

    tokens: tuple[str, ...]
    blank: int
    unknown: int | None = None

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """The vocabulary of a CTC tokenizer; a space in a token's text separates words.

        Args:
            tokenizer: of transformers.

        Raises:
            ConfigError: it has no padding token to be the blank.
        """
        if tokenizer.pad_token_id is None:
            raise ConfigError(f"{type(tokenizer).__name__} has no padding token; expected one, which is the CTC blank")
        numbers = tokenizer.get_vocab()
        delimiter = getattr(tokenizer, "word_delimiter_token", None) or DELIMITER
        tokens = [""] * (max(numbers.values()) + 1)
        special = set(tokenizer.all_special_tokens) - {delimiter}
        for token, number in numbers.items():
            if token not in special:
                tokens[number] = " " if token == delimiter else token.replace(_PIECE_MARK, " ")
        return cls(tuple(tokens), int(tokenizer.pad_token_id), tokenizer.unk_token_id)

    def text(self, ids: Iterable[int]) -> str:
        """Text of tokens from which repetitions and blanks are gone; single spaces, none at the ends."""
        return " ".join("".join(self.tokens[token] for token in ids).split())

    def spells(self, word: str) -> bool:
        """Whether tokens make up a word, alone or behind a space."""
        pieces = set(self.tokens) - {""}
        longest = max(map(len, pieces), default=0)

        def made_up(text: str) -> bool:
            reached = [True] + [False] * len(text)
            for end in range(1, len(reached)):
                begins = range(max(0, end - longest), end)
                reached[end] = any(reached[begin] and text[begin:end] in pieces for begin in begins)
            return reached[-1]

        return made_up(f" {word}") or made_up(word)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Numbers of a normalised transcript's tokens."""
    return list(tokenizer(text, add_special_tokens=False).input_ids) if text else []


def frames_needed(ids: Sequence[int]) -> int:
    """Fewest frames that CTC can write tokens into: one each, and a blank between equal neighbours."""
    return len(ids) + sum(first == second for first, second in pairwise(ids))
