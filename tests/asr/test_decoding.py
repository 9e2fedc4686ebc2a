"""Decoding against the sum over every alignment."""

import itertools
import math

import numpy as np
import pytest

from mambavox.asr.decoding import HotWords, align, greedy_search, prefix_beam_search, words_in
from mambavox.asr.tokenizer import Vocabulary
from mambavox.errors import ConfigError, DataError

LETTERS = Vocabulary(("", "", " ", "a", "b", "c"), blank=0, unknown=1)


def log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def random_frames(time, tokens, seed, sharpness=1.5):
    return log_softmax(sharpness * np.random.default_rng(seed).standard_normal((time, tokens)))


def collapse(path, blank):
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def every_text(log_probs, blank):
    """Log probability of each text, and its likeliest alignment, by trying all alignments."""
    total, best = {}, {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = sum(log_probs[frame, token] for frame, token in enumerate(path))
        text = collapse(path, blank)
        total[text] = np.logaddexp(total.get(text, -math.inf), score)
        if score > best.get(text, (-math.inf,))[0]:
            best[text] = (score, path)
    return total, best


@pytest.mark.parametrize(("time", "tokens", "blank"), [(1, 3, 0), (4, 3, 0), (5, 4, 3), (6, 3, 1), (3, 5, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_is_exact(time, tokens, blank, seed):
    log_probs = random_frames(time, tokens, seed)
    total, _ = every_text(log_probs, blank)
    found = prefix_beam_search(log_probs, blank, beam_size=10_000)
    assert {hypothesis.ids for hypothesis in found} == set(total)
    for hypothesis in found:
        assert hypothesis.log_probability == pytest.approx(total[hypothesis.ids], abs=1e-9)
    assert found[0].ids == max(total, key=total.__getitem__)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)


def test_with_a_bonus_the_best_is_the_best_of_both():
    log_probs = random_frames(5, 4, 7)
    total, _ = every_text(log_probs, 0)

    def bonus(ids):
        return 1.7 * ids.count(2) - 0.3 * len(ids)

    best = prefix_beam_search(log_probs, 0, beam_size=10_000, bonus=bonus)[0]
    assert best.ids == max(total, key=lambda text: total[text] + bonus(text))
    assert best.score == pytest.approx(total[best.ids] + bonus(best.ids))


def test_a_narrow_beam_beats_or_equals_greedy_search():
    for seed in range(20):
        log_probs = random_frames(6, 4, seed)
        total, _ = every_text(log_probs, 0)
        best = prefix_beam_search(log_probs, 0, beam_size=8)[0]
        assert best.log_probability <= total[best.ids] + 1e-9
        assert total[best.ids] >= total[tuple(greedy_search(log_probs, 0))] - 1e-9


def test_a_margin_passes_over_unlikely_tokens():
    log_probs = np.log(np.array([[0.1, 0.88, 0.02]] * 2))
    assert {item.ids for item in prefix_beam_search(log_probs, 0, token_margin=2.5)} == {(), (1,)}


def test_greedy_search_is_the_likeliest_alignment():
    log_probs = random_frames(6, 3, 1)
    _, best = every_text(log_probs, 0)
    assert tuple(greedy_search(log_probs, 0)) == collapse(max(best.values())[1], 0)


def test_nothing_gives_nothing():
    empty = np.zeros((0, 3))
    assert greedy_search(empty, 0) == []
    assert [item.ids for item in prefix_beam_search(empty, 0)] == [()]
    assert words_in(empty, [], LETTERS, 0.02) == []
    with pytest.raises(ConfigError, match="beam_size=0"):
        prefix_beam_search(empty, 0, beam_size=0)


@pytest.mark.parametrize("seed", range(4))
def test_alignment_is_the_likeliest_of_the_text(seed):
    log_probs = random_frames(6, 4, seed)
    _, best = every_text(log_probs, 0)
    for text, (score, path) in best.items():
        spans = align(log_probs, text, 0)
        rebuilt = [0] * len(path)
        for token, (start, end) in zip(text, spans, strict=True):
            assert start < end
            rebuilt[start:end] = [token] * (end - start)
        assert collapse(rebuilt, 0) == text
        assert sum(log_probs[frame, token] for frame, token in enumerate(rebuilt)) == pytest.approx(score)


def test_a_text_too_long_for_its_frames_is_an_error():
    with pytest.raises(DataError, match="3 tokens cannot be written into 3 frames"):
        align(random_frames(3, 4, 0), (1, 1, 2), 0)
    with pytest.raises(DataError, match="into 0 frames"):
        align(np.zeros((0, 4)), (1,), 0)


def spelled(path, sure=0.9):
    """Frames that say a path."""
    probabilities = np.full((len(path), 6), (1 - sure) / 5)
    probabilities[np.arange(len(path)), path] = sure
    return np.log(probabilities)


def test_words_have_times_and_confidences():
    log_probs = spelled([0, 3, 3, 4, 0, 2, 0, 0, 5, 5])
    ids = greedy_search(log_probs, 0)
    assert LETTERS.text(ids) == "ab c"
    first, second = words_in(log_probs, ids, LETTERS, 0.02)
    assert (first.text, first.start, first.end) == ("ab", pytest.approx(0.02), pytest.approx(0.08))
    assert (second.text, second.start, second.end) == ("c", pytest.approx(0.16), pytest.approx(0.20))
    assert first.confidence == pytest.approx(0.9)
    doubtful = log_probs.copy()
    doubtful[8:] = spelled([5, 5], 0.4)
    assert words_in(doubtful, ids, LETTERS, 0.02)[1].confidence == pytest.approx(0.4)


def test_pieces_make_words():
    pieces = Vocabulary(("", " ab", "c", " d", "", ""), blank=0)
    log_probs = spelled([1, 2, 0, 3])
    assert [word.text for word in words_in(log_probs, [1, 2, 3], pieces, 0.1)] == ["abc", "d"]


def test_hot_words_are_preferred_only_as_whole_words():
    bonus = HotWords(["ab", "abc"], LETTERS, weight=6.0)
    a, b, c, space = 3, 4, 5, 2
    assert bonus(()) == 0
    assert bonus((a,)) == 3
    assert bonus((a, b)) == 6
    assert bonus((a, b, space)) == 6
    assert bonus((a, b, c, space, a)) == 9
    assert bonus((a, c)) == 0
    assert bonus((c, a, b)) == 0
    log_probs = spelled([a, 0, c, c], 0.5)
    log_probs[2:, b] = np.log(0.3)
    plain = prefix_beam_search(log_probs, 0)[0].ids
    assert LETTERS.text(plain) == "ac"
    hot = prefix_beam_search(log_probs, 0, bonus=HotWords(["ab"], LETTERS, 4.0))[0].ids
    assert LETTERS.text(hot) == "ab"
    with pytest.raises(ConfigError, match="'a b'"):
        HotWords(["a b"], LETTERS)


def test_hot_words_that_cannot_be_spelled_are_named():
    with pytest.raises(ConfigError, match="hot words Ab, xa cannot be written"):
        HotWords(["Ab", "cab", "xa"], LETTERS)
    pieces = Vocabulary(("", " ab", "c", " d", "", ""), blank=0)
    HotWords(["abc", "dc"], pieces)
    with pytest.raises(ConfigError, match="hot words cab, b cannot be written"):
        HotWords(["cab", "abc", "b"], pieces)
