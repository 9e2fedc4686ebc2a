"""Vocabularies: trained, saved, loaded as transformers does it."""

import pytest
from transformers import AutoTokenizer

from mambavox.asr.tokenizer import BLANK, Vocabulary, encode, frames_needed, train_tokenizer
from mambavox.errors import ConfigError, DataError

TEXTS = ["hello little world", "hello there", "ĉu ŝi li'l", "hello hello"]


@pytest.mark.parametrize(("kind", "size"), [("characters", 0), ("bpe", 40)])
def test_saves_loads_and_spells(kind, size, tmp_path):
    tokenizer = train_tokenizer(TEXTS, kind, size)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    vocabulary = Vocabulary.of(loaded)
    assert vocabulary == Vocabulary.of(tokenizer)
    assert vocabulary.blank == loaded.pad_token_id == 0
    assert loaded.get_vocab()[BLANK] == 0
    for text in [*TEXTS, "world hello", ""]:
        ids = encode(loaded, text)
        assert vocabulary.blank not in ids
        assert vocabulary.unknown not in ids
        assert vocabulary.text(ids) == text
    assert vocabulary.unknown in encode(loaded, "hello жук")


def test_pieces_are_fewer_than_characters():
    texts = TEXTS * 3
    tokenizer = train_tokenizer(texts, "bpe", 60)
    assert len(tokenizer.get_vocab()) <= 60
    assert len(encode(tokenizer, "hello hello")) < len("hello hello")


def test_frames_needed():
    assert frames_needed([]) == 0
    assert frames_needed([1, 2, 1]) == 3
    assert frames_needed([1, 1, 1, 2]) == 6


def test_mistakes_are_told():
    with pytest.raises(DataError, match="are empty"):
        train_tokenizer(["", "  "])
    with pytest.raises(DataError, match=r"hold '\|'"):
        train_tokenizer(["a|b"])
    with pytest.raises(ConfigError, match="vocabulary_size=5; expected at least 9"):
        train_tokenizer(["abcdef"], "bpe", 5)
