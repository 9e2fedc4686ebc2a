"""Error rates: jiwer's, with defined results at the edges."""

import json

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambavox.asr.metrics import ErrorCounts, score_transcripts
from mambavox.errors import DataError

texts = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat"]), min_size=1, max_size=8).map(" ".join)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_rates_are_those_of_jiwer(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    scores = score_transcripts(references, hypotheses)
    assert scores.wer.rate == pytest.approx(jiwer.wer(references, hypotheses))
    assert scores.cer.rate == pytest.approx(jiwer.cer(references, hypotheses))


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_alignments_spell_both_sides(pairs):
    for utterance in score_transcripts(*map(list, zip(*pairs, strict=True))).utterances:
        assert " ".join(said for kind, said, _ in utterance.alignment if kind != "I") == utterance.reference
        assert " ".join(heard for kind, _, heard in utterance.alignment if kind != "D") == utterance.hypothesis
        assert all((said == heard) == (kind == "=") for kind, said, heard in utterance.alignment)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts", "rate"),
    [
        ("", "", ErrorCounts(), 0.0),
        ("", "a b", ErrorCounts(insertions=2), 1.0),
        ("a b", "", ErrorCounts(deletions=2), 1.0),
        ("a", "a b c", ErrorCounts(hits=1, insertions=2), 2.0),
        ("a b c d", "a x d", ErrorCounts(hits=2, substitutions=1, deletions=1), 0.5),
    ],
)
def test_edges(reference, hypothesis, counts, rate):
    scores = score_transcripts([reference], [hypothesis])
    assert scores.utterances[0].words == counts
    assert scores.wer.rate == scores.utterances[0].words.rate == rate
    assert (scores.empty_references, scores.empty_hypotheses) == (int(not reference), int(not hypothesis))
    json.dumps(scores.to_mapping(), allow_nan=False)


def test_what_is_heard_in_silence_counts_for_the_corpus():
    scores = score_transcripts(["a b c d", ""], ["a b c d", "x"])
    assert scores.wer.rate == 0.25
    assert scores.wer.counts.insertions == 1


def test_characters_include_spaces_between_words():
    assert score_transcripts(["a b"], ["ab"]).cer.counts == ErrorCounts(hits=2, deletions=1)


def test_chinese_words_are_characters():
    scores = score_transcripts(["你好世界 python"], ["你坏世界 python"], language="zh")
    assert (scores.wer.counts.length, scores.wer.counts.substitutions) == (5, 1)
    assert scores.confusions("S") == [("好", "坏", 1)]


def test_confusions_and_worst():
    scores = score_transcripts(
        ["the cat", "the cat sat", "a mat", "fine"], ["the hat", "the hat sat on", "mat", "fine"], names=list("abcd")
    )
    assert scores.confusions("S") == [("cat", "hat", 2)]
    assert scores.confusions("D") == [("a", "", 1)]
    assert scores.confusions("I") == [("", "on", 1)]
    assert [utterance.name for utterance in scores.worst()] == ["b", "a", "c"]
    assert [utterance.name for utterance in scores.worst(1)] == ["b"]


def test_the_interval_holds_the_rate_and_narrows():
    generator = np.random.default_rng(0)

    def interval(count):
        wrong = generator.random(count) < 0.2
        return score_transcripts(["a"] * count, ["b" if bad else "a" for bad in wrong]).wer

    few, many = interval(50), interval(2000)
    for rate in (few, many):
        assert rate.low < rate.rate < rate.high
    # For one word an utterance the bootstrap is a binomial's.
    width = 2 * 1.96 * np.sqrt(many.rate * (1 - many.rate) / 2000)
    assert many.high - many.low == pytest.approx(width, rel=0.15)
    assert few.high - few.low > 3 * (many.high - many.low)
    again = score_transcripts(["a", "b"] * 9, ["a", "c"] * 9)
    assert again.wer == score_transcripts(["a", "b"] * 9, ["a", "c"] * 9).wer


def test_intervals_hold_the_true_rate_95_times_in_100():
    generator = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        lengths = generator.integers(1, 6, 60)
        wrong = [generator.random(length) < 0.3 for length in lengths]
        references = [" ".join("a" * length) for length in lengths]
        hypotheses = [" ".join("b" if bad else "a" for bad in row) for row in wrong]
        rate = score_transcripts(references, hypotheses, seed=trial).wer
        inside += rate.low <= 0.3 <= rate.high
    assert 180 <= inside <= 199


def test_mistakes_are_told():
    with pytest.raises(DataError, match="2 references, 1 hypotheses"):
        score_transcripts(["a", "b"], ["a"])
    with pytest.raises(DataError, match="no transcripts"):
        score_transcripts([], [])


def test_both_sides_word_under_word():
    (utterance,) = score_transcripts(["the cat sat on it"], ["the hat sat quite on"]).utterances
    said, heard = utterance.aligned()
    assert said == "the CAT sat ***** on IT"
    assert heard == "the HAT sat QUITE on **"
