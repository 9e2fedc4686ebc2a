"""Decoding with an n-gram model."""

import numpy as np
import pytest

from mambavox.asr.language_model import LanguageModelSearch
from mambavox.asr.tokenizer import Vocabulary, train_tokenizer
from mambavox.errors import ConfigError

ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.3
-1.0\t</s>
-1.0\tcat\t-0.3
-1.0\that\t-0.3
-1.0\tthe\t-0.3

\\2-grams:
-0.1\t<s> the
-0.1\tthe hat
-3.0\tthe cat
-0.1\that </s>

\\end\\
"""


@pytest.fixture
def arpa(tmp_path):
    path = tmp_path / "tiny.arpa"
    path.write_text(ARPA)
    return path


def frames(tokenizer, text, confused=()):
    """Frames that say a text; a confused letter is almost as likely as another one."""
    vocabulary = Vocabulary.of(tokenizer)
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    probabilities = np.full((2 * len(text), len(vocabulary.tokens)), 0.001)
    for index, letter in enumerate(text):
        probabilities[2 * index, numbers[letter]] = 0.5
        for first, second in confused:
            if letter == first:
                probabilities[2 * index, numbers[second]] = 0.4
        probabilities[2 * index + 1, 0] = 0.9
    return np.log(probabilities / probabilities.sum(axis=1, keepdims=True))


def test_words_decide_where_sounds_are_alike(arpa):
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="the extra lm is not installed")
    pytest.importorskip("kenlm", reason="the extra lm is not installed")
    tokenizer = train_tokenizer(["the cat hat"])
    vocabulary = Vocabulary.of(tokenizer)
    log_probs = frames(tokenizer, "the cat", confused=[("c", "h")])
    assert vocabulary.text(LanguageModelSearch(arpa, tokenizer, weight=0.0)(log_probs)) == "the cat"
    assert vocabulary.text(LanguageModelSearch(arpa, tokenizer, weight=2.0)(log_probs)) == "the hat"
    # A list of words is a lexicon.
    only = LanguageModelSearch(arpa, tokenizer, words=["the", "cat"], weight=2.0)
    assert vocabulary.text(only(log_probs)) == "the cat"
    assert only(log_probs[:0]) == []


def test_mistakes_are_told(arpa, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="the extra lm is not installed")
    tokenizer = train_tokenizer(["the cat hat"])
    with pytest.raises(ConfigError, match="no such file"):
        LanguageModelSearch(tmp_path / "none.arpa", tokenizer)
    with pytest.raises(ConfigError, match="none of its 3 words can be written"):
        LanguageModelSearch(arpa, train_tokenizer(["xyz"]))
    with pytest.raises(ConfigError, match="needs a vocabulary of characters"):
        LanguageModelSearch(arpa, train_tokenizer(["the cat hat"], "bpe", 20))
    (tmp_path / "one.arpa").write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1\tcat\n\n\\end\\\n")
    with pytest.raises(ConfigError, match="at least a bigram"):
        LanguageModelSearch(tmp_path / "one.arpa", tokenizer)
    (tmp_path / "model.bin").write_bytes(b"mmap lm \xff\xfe\x00")
    with pytest.raises(ConfigError, match="--lm-words"):
        LanguageModelSearch(tmp_path / "model.bin", tokenizer)


def test_without_the_extra_the_message_says_how_to_install_it(arpa, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(ConfigError, match=r"pip install 'mambavox\[lm\]'"):
        LanguageModelSearch(arpa, train_tokenizer(["the cat hat"]))
