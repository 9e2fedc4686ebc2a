"""Live decoding writes what decoding of the whole recording writes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor

from mambavox.asr.decoding import greedy_search, words_in
from mambavox.asr.live import Endpointing, LiveDecoder, LiveRecognizer
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.tokenizer import Vocabulary, train_tokenizer
from mambavox.errors import ConfigError, HostError
from mambavox.hubert import MambaHubertForCTC

CHARACTERS = Vocabulary(("", "", " ", "a", "b", "c"), blank=0, unknown=1)
PIECES = Vocabulary(("", "", " a", " bc", "b", "c"), blank=0, unknown=1)
FRAME = 0.02
ENDLESS = Endpointing(pause_seconds=1e6, segment_seconds=1e6)


def log_probs_of(text, vocabulary=CHARACTERS, sure=0.9):
    """Frames in which the tokens of a text are likeliest; a dot is the blank, ``?`` the unknown one."""
    numbers = {".": 0, "?": 1} | {token: index for index, token in enumerate(vocabulary.tokens) if token}
    frames = np.full((len(text), len(vocabulary.tokens)), (1 - sure) / (len(vocabulary.tokens) - 1))
    frames[np.arange(len(text)), [numbers[letter] for letter in text]] = sure
    return np.log(frames)


def feed(decoder, log_probs, sizes):
    segments, begin = [], 0
    for size in [*sizes, len(log_probs)]:
        segments += decoder.feed(log_probs[begin : begin + size])
        begin += size
    return segments + decoder.finish()


def texts(segments):
    return [(segment.number, segment.text) for segment in segments if segment.final]


@pytest.mark.parametrize("vocabulary", [CHARACTERS, PIECES])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    time=st.integers(0, 40),
    sizes=st.lists(st.integers(0, 9), max_size=6),
    sharpness=st.sampled_from([0.3, 1.5, 5.0]),
)
def test_any_pieces_give_the_words_of_the_whole(vocabulary, seed, time, sizes, sharpness):
    logits = sharpness * np.random.default_rng(seed).standard_normal((time, 6))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    segments = feed(LiveDecoder(vocabulary, FRAME, ENDLESS), log_probs, sizes)
    expected = words_in(log_probs, greedy_search(log_probs, 0), vocabulary, FRAME)
    finals = [segment for segment in segments if segment.final]
    assert len(finals) == bool(expected)
    words = [word for segment in finals for word in segment.words]
    assert [(word.text, word.start, word.end) for word in words] == [
        (word.text, word.start, word.end) for word in expected
    ]
    assert [word.confidence for word in words] == pytest.approx([word.confidence for word in expected])
    shown = [segment.text for segment in segments]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))


def test_partial_texts_grow_and_come_only_when_they_change():
    decoder = LiveDecoder(CHARACTERS, FRAME)
    assert decoder.feed(log_probs_of("...")) == []
    assert [segment.text for segment in decoder.feed(log_probs_of("aa.b"))] == ["ab"]
    assert decoder.feed(log_probs_of("bb..")) == []
    (segment,) = decoder.feed(log_probs_of(" c"))
    assert (segment.text, segment.final, segment.start, segment.end) == ("ab c", False, 3 * FRAME, 13 * FRAME)
    assert segment.confidence == pytest.approx(0.9)
    assert decoder.seconds == pytest.approx(13 * FRAME)


def test_a_pause_ends_a_segment_with_its_last_frame():
    decoder = LiveDecoder(CHARACTERS, FRAME, Endpointing(pause_seconds=0.1))  # 5 frames
    assert [segment.final for segment in decoder.feed(log_probs_of("ab. .."))] == [False]
    (final,) = decoder.feed(log_probs_of("."))
    assert (final.number, final.text, final.final) == (0, "ab", True)
    assert decoder.feed(log_probs_of("......")) == []
    assert texts(decoder.feed(log_probs_of("c.....a"))) == [(1, "c")]
    assert texts(decoder.finish()) == [(2, "a")]
    assert decoder.finish() == []


def test_what_is_not_known_is_no_pause():
    decoder = LiveDecoder(CHARACTERS, FRAME, Endpointing(pause_seconds=0.1))
    assert texts(decoder.feed(log_probs_of("a..??...."))) == []
    assert texts(decoder.feed(log_probs_of("."))) == [(0, "a")]


def test_long_segments_are_cut_behind_a_whole_word():
    decoder = LiveDecoder(CHARACTERS, FRAME, Endpointing(pause_seconds=1.0, segment_seconds=0.2))  # 10 frames
    segments = feed(decoder, log_probs_of("ab ba cccacb b"), [])
    assert texts(segments) == [(0, "ab ba"), (1, "cacb b")]
    assert [word.start for word in segments[-1].words] == pytest.approx([6 * FRAME, 13 * FRAME])


def test_a_word_without_end_is_cut_and_nothing_is_lost():
    decoder = LiveDecoder(CHARACTERS, FRAME, Endpointing(pause_seconds=1.0, segment_seconds=0.1))
    assert texts(feed(decoder, log_probs_of("abababa"), [])) == [(0, "ababa"), (1, "ba")]
    decoder = LiveDecoder(CHARACTERS, FRAME, Endpointing(pause_seconds=1.0, segment_seconds=0.1))
    assert texts(feed(decoder, log_probs_of("ababbbb" + "c"), [])) == [(0, "abab"), (1, "c")]


def test_json_has_words_and_times():
    *_, segment = feed(LiveDecoder(CHARACTERS, FRAME), log_probs_of("a b"), [])
    mapping = segment.to_mapping()
    assert mapping["words"][1] == {"text": "b", "start": 2 * FRAME, "end": 3 * FRAME, "confidence": pytest.approx(0.9)}
    assert (mapping["segment"], mapping["final"], mapping["text"]) == (0, True, "a b")


@pytest.mark.parametrize("values", [{"pause_seconds": 0.0}, {"segment_seconds": -1.0}, {"pause_seconds": float("nan")}])
def test_endpointing_needs_seconds(values):
    with pytest.raises(ConfigError, match="expected seconds above 0"):
        Endpointing(**values)


def new_recognizer(encoder="mamba", **overrides):
    tokenizer = train_tokenizer(["ab c"])
    model = MambaHubertForCTC(tiny_config(encoder, vocab_size=len(tokenizer), pad_token_id=0, **overrides))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # so that random frames differ in their letters
    return SpeechRecognizer(model, Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True), tokenizer)


def words(segments):
    return [word for segment in segments if segment.final for word in segment.words]


class TestManyStreams:
    @pytest.mark.parametrize("encoder", ["mamba", "mamba2", "causal-transformer"])
    def test_each_stream_hears_what_it_would_hear_alone(self, encoder):
        recognizer = new_recognizer(encoder)
        live = LiveRecognizer(recognizer, ENDLESS)
        rng = np.random.default_rng(1)
        waveforms = [rng.standard_normal(size).astype(np.float32) for size in (1200, 700, 1600, 0, 25)]
        heard = {number: [] for number in range(len(waveforms))}
        places, at = {}, dict.fromkeys(heard, 0)
        for step in range(40):
            # They come one after another, go on at their own pace, and leave when they are done.
            if step % 3 == 0 and step // 3 < len(waveforms):
                places[live.open()] = step // 3
            pieces, last = {}, []
            for key, number in places.items():
                if rng.random() < 0.7:
                    size = int(rng.integers(0, 160))
                    pieces[key] = waveforms[number][at[number] : at[number] + size]
                    at[number] += size
                    if at[number] >= len(waveforms[number]):
                        last.append(key)
            for key, segments in live.feed(pieces, last).items():
                heard[places[key]] += segments
            for key in last:
                del places[key]
        assert not places
        assert live.streams == live.nbytes == 0
        assert sum(len(words(segments)) for segments in heard.values()) > 3
        for number, waveform in enumerate(waveforms):
            if len(waveform) < 40:
                assert heard[number] == []
                continue
            (alone,) = recognizer.transcribe([waveform])
            assert [word.text for word in words(heard[number])] == [word.text for word in alone.words]
            for got, expected in zip(words(heard[number]), alone.words, strict=True):
                assert (got.start, got.end) == (expected.start, expected.end)
                assert got.confidence == pytest.approx(expected.confidence, rel=1e-3)

    def test_a_stream_that_is_closed_leaves_the_others_as_they_are(self):
        recognizer = new_recognizer()
        waveform = np.random.default_rng(2).standard_normal(800).astype(np.float32)
        live = LiveRecognizer(recognizer, ENDLESS)
        first, second = live.open(), live.open()
        live.feed({first: waveform[::-1].copy(), second: waveform[:333]})
        live.close(first)
        assert live.streams == 1
        segments = live.feed({second: waveform[333:]}, [second])[second]
        assert [word.text for word in words(segments)] == [
            word.text for word in recognizer.transcribe([waveform])[0].words
        ]

    def test_keys_that_are_not_open_are_refused_and_change_nothing(self):
        live = LiveRecognizer(new_recognizer(), ENDLESS)
        key = live.open()
        with pytest.raises(ConfigError, match="stream 7"):
            live.feed({key: np.zeros(50, dtype=np.float32), 7: np.zeros(50, dtype=np.float32)})
        with pytest.raises(ConfigError, match=f"stream {key}"):
            live.feed({}, [key])
        assert live.feed({}) == {}
        assert live.streams == 1


def test_models_that_cannot_be_streamed_are_named():
    recognizer = new_recognizer()
    recognizer.extractor.do_normalize = True
    with pytest.raises(ConfigError, match="do_normalize"):
        LiveRecognizer(recognizer)
    with pytest.raises(ConfigError, match="not causal"):
        LiveRecognizer(new_recognizer("ext-bimamba"))
    recognizer = new_recognizer()
    recognizer.model = torch.nn.Linear(1, 1)
    with pytest.raises(HostError, match="a Linear cannot be streamed"):
        LiveRecognizer(recognizer)
