"""Long recordings say block by block what they say as a whole, and go on where they were."""

import itertools
import resource
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from peft import get_peft_model
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor

from mambavox.adapters import MambAdapterConfig
from mambavox.asr.journal import Journal
from mambavox.asr.live import Endpointing, LiveRecognizer
from mambavox.asr.long_form import ChunkedHearing, ExactHearing, LongFormState, LongFormStream, hear_file, hearing_of
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.tokenizer import train_tokenizer
from mambavox.data import read_audio
from mambavox.errors import AudioError, ConfigError, DataError
from mambavox.hubert import MambaHubertForCTC

TOKENIZER = train_tokenizer(["abc de"])
ENDLESS = Endpointing(pause_seconds=1e6, segment_seconds=1e6)
QUICK = Endpointing(pause_seconds=0.005, segment_seconds=0.05)  # a frame has 20 samples, 1.25 ms


def recognizer_of(encoder="mamba", normalize=False, **overrides):
    torch.manual_seed(1)
    model = MambaHubertForCTC(tiny_config(encoder, vocab_size=len(TOKENIZER), pad_token_id=0, **overrides))
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # else the same token would be likeliest in every frame
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)
    return SpeechRecognizer(model, extractor, TOKENIZER)


def noise(samples, seed=0):
    return np.random.default_rng(seed).standard_normal(samples, dtype=np.float32)


def hear(stream, waveform, sizes):
    segments, sizes = [], itertools.cycle(sizes)
    while len(waveform):
        size = next(sizes)
        segments += stream.feed(waveform[:size])
        waveform = waveform[size:]
    return segments + stream.feed(waveform, final=True)


def words_of(segments):
    return [word for segment in segments for word in segment.words]


def assert_same_words(found, expected):
    assert [word.text for word in found] == [word.text for word in expected]
    for name in ("start", "end", "confidence"):
        values = [[getattr(word, name) for word in words] for words in (found, expected)]
        np.testing.assert_allclose(*values, atol=1e-4)


@pytest.mark.parametrize("encoder", ["mamba", "ext-bimamba"])
def test_without_pauses_it_hears_the_words_of_the_whole(encoder):
    recognizer = recognizer_of(encoder)
    waveform = noise(8000)
    hearing, why_not = hearing_of(recognizer)
    if encoder == "mamba":
        assert isinstance(hearing, ExactHearing) and why_not is None
    else:
        assert isinstance(hearing, ChunkedHearing) and "not causal" in why_not
    stream = LongFormStream(recognizer, hearing=hearing, endpointing=ENDLESS)
    (segment,) = hear(stream, waveform, [1000, 1, 333])
    expected = recognizer.transcribe([waveform])[0].words
    assert len(expected) > 20 and stream.samples == 8000
    assert_same_words(segment.words, expected)


def test_a_search_reads_each_segment_when_it_has_ended():
    recognizer = recognizer_of()
    waveform = noise(8000)
    search = recognizer.search(beam_size=4)
    assert recognizer.search() is None
    stream = LongFormStream(recognizer, endpointing=ENDLESS, search=search)
    (segment,) = hear(stream, waveform, [700])
    expected = recognizer.transcribe([waveform], beam_size=4)[0].words
    assert [word.text for word in expected] != [word.text for word in recognizer.transcribe([waveform])[0].words]
    assert_same_words(segment.words, expected)
    # Cut into segments, the greedy search finds what the decoder found, at the same times.
    greedy = LongFormStream(recognizer, endpointing=QUICK)
    searched = LongFormStream(recognizer, endpointing=QUICK, search=lambda frames: greedy_ids(frames))
    one, other = hear(greedy, waveform, [700]), hear(searched, waveform, [700])
    assert len(one) > 2
    assert [segment.number for segment in other] == list(range(len(other)))
    assert_same_words(words_of(other), words_of(one))
    assert searched.state().pending.shape[1] < 200


def greedy_ids(frames):
    from mambavox.asr.decoding import greedy_search

    return greedy_search(frames, 0)


@pytest.mark.parametrize("encoder", ["mamba", "ext-bimamba"])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_saved_state_goes_on_to_the_same_words(tmp_path, encoder, beam_size):
    recognizer = recognizer_of(encoder)
    waveform = noise(6000)
    hearing = ExactHearing(recognizer) if encoder == "mamba" else ChunkedHearing(recognizer, 0.05, 0.02, 0.02)
    options = {"hearing": hearing, "endpointing": QUICK, "search": recognizer.search(beam_size=beam_size)}
    first = LongFormStream(recognizer, **options)
    begun = first.feed(waveform[:2500])
    first.state().save(tmp_path / "state")
    state = LongFormState.load(tmp_path / "state")
    second = LongFormStream(recognizer, **options, state=state)
    assert second.samples == 2500
    rest = hear(second, waveform[2500:], [3500])
    whole = hear(LongFormStream(recognizer, **options), waveform, [2500, 3500])
    assert len(begun) > 0 and len(rest) > 0
    assert begun + rest == whole


def test_a_state_of_other_settings_is_refused():
    recognizer = recognizer_of()
    state = LongFormStream(recognizer).state()
    broken = LongFormState(state.hearing, state.pending, 0, '{"_frame": 1}', 0, 0)
    with pytest.raises(DataError, match="a decoder's progress"):
        LongFormStream(recognizer, state=broken)
    stream = LongFormStream(recognizer, endpointing=QUICK)
    stream.feed(noise(2000))
    state, search = stream.state(), recognizer.search(beam_size=2)
    LongFormStream(recognizer, endpointing=QUICK, state=state)
    for match, options in (
        ("another pause", {"endpointing": Endpointing(0.01, 0.05)}),
        ("another longest", {"endpointing": Endpointing(0.005, 0.1)}),
        ("in another way heard", {"hearing": ChunkedHearing(recognizer, 0.05, 0.02, 0.02), "endpointing": QUICK}),
        ("of a stream without a search", {"search": search, "endpointing": QUICK}),
    ):
        with pytest.raises(DataError, match=match):
            LongFormStream(recognizer, state=state, **options)
    for other in (recognizer_of(hidden_size=32), recognizer_of("mamba2")):
        with pytest.raises(DataError, match="another model"):
            LongFormStream(other, state=state, endpointing=QUICK)
    other = recognizer_of()
    other.vocabulary = replace(other.vocabulary, tokens=(*other.vocabulary.tokens[:-1], "f"))
    with pytest.raises(DataError, match="another vocabulary"):
        LongFormStream(other, state=state, endpointing=QUICK)
    searched = LongFormStream(recognizer, endpointing=QUICK, search=search)
    searched.feed(noise(2000))
    with pytest.raises(DataError, match="of a stream with a search"):
        LongFormStream(recognizer, endpointing=QUICK, state=searched.state())


def test_what_would_grow_or_wait_for_the_end_is_heard_in_chunks():
    hearing, why_not = hearing_of(recognizer_of(normalize=True))
    assert isinstance(hearing, ChunkedHearing) and "do_normalize" in why_not
    hearing, why_not = hearing_of(recognizer_of(["mamba", "causal-transformer"]))
    assert isinstance(hearing, ChunkedHearing) and "attention keeps every frame" in why_not
    # An adapter around the attention does not hide it.
    recognizer = recognizer_of(["mamba", "causal-transformer"])
    recognizer.model = get_peft_model(recognizer.model, MambAdapterConfig(bottleneck_dim=4, placement="attention"))
    hearing, why_not = hearing_of(recognizer)
    assert isinstance(hearing, ChunkedHearing) and "attention keeps every frame" in why_not
    with pytest.raises(ConfigError, match="chunk=0"):
        ChunkedHearing(recognizer_of(), 0)


def test_memory_of_a_stream_does_not_grow():
    recognizer = recognizer_of()
    for hearing in (ExactHearing(recognizer), ChunkedHearing(recognizer, 0.05, 0.02, 0.02)):
        search = recognizer.search(beam_size=2)
        stream = LongFormStream(recognizer, hearing=hearing, endpointing=Endpointing(0.005, 0.05), search=search)
        sizes = []
        for seed in range(12):
            stream.feed(noise(1000, seed))
            sizes.append(stream.state().nbytes)
        assert max(sizes[6:]) < 1.5 * max(sizes[:6]), sizes


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_a_file_is_gone_on_with_where_it_was(tmp_path, rate):
    recognizer = recognizer_of()
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.2 * noise(12 * rate), rate)
    whole = list(hear_file(LongFormStream(recognizer, endpointing=QUICK), path, 16_000))
    assert len(whole) >= 4  # blocks of five seconds, and the end
    stream = LongFormStream(recognizer, endpointing=QUICK)
    parts = [next(iter(hear_file(stream, path, 16_000)))]
    second = LongFormStream(recognizer, endpointing=QUICK, state=stream.state())
    parts += hear_file(second, path, 16_000)
    assert parts == whole
    assert second.samples == len(read_audio(path))
    with pytest.raises(AudioError, match="no such file"):
        list(hear_file(stream, tmp_path / "none.wav", 16_000))


def test_a_journal_on_a_full_disk_keeps_its_last_checkpoint(tmp_path):
    recognizer = recognizer_of()
    stream = LongFormStream(recognizer, endpointing=QUICK)
    journal = Journal(tmp_path / "journal", {})
    journal.open()
    first = stream.feed(noise(2000))
    journal.add(first)
    journal.checkpoint(stream.state())
    more = stream.feed(noise(2000, 1))
    journal.add(more)
    size = (tmp_path / "journal" / "segments.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (size, 3 * size):  # for nothing more; for the segments, but not for the state
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(OSError, match="large"):
                journal.checkpoint(stream.state())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        segments, state = Journal(tmp_path / "journal", {}).open()
        assert segments == first and state.samples == 2000
    journal.checkpoint(stream.state())
    segments, state = Journal(tmp_path / "journal", {}).open()
    assert segments == first + more and state.samples == 4000


def test_a_journal_is_whole_whenever_it_was_left(tmp_path):
    recognizer = recognizer_of()
    stream = LongFormStream(recognizer, endpointing=QUICK)
    journal = Journal(tmp_path / "journal", {"model": "a"})
    assert journal.open() == ([], None)
    first = stream.feed(noise(2000))
    journal.add(first)
    assert Journal(tmp_path / "journal", {"model": "a"}).open() == ([], None)  # nothing was saved yet
    journal.checkpoint(stream.state())
    saved = (tmp_path / "journal" / "state.safetensors").read_bytes()
    more = stream.feed(noise(2000, 1))
    journal.add(more)
    journal.checkpoint(stream.state())
    assert len(first) > 0 and len(more) > 0
    again = Journal(tmp_path / "journal", {"model": "a"})
    segments, state = again.open()
    assert segments == first + more and state.samples == 4000
    # Killed between the segments and the state: the older state counts fewer of them.
    (tmp_path / "journal" / "state.safetensors").write_bytes(saved)
    segments, state = again.open()
    assert segments == first and state.samples == 2000
    again.add(more)
    again.checkpoint(stream.state())
    assert Journal(tmp_path / "journal", {"model": "a"}).open()[0] == first + more
    # Damaged, or of another model: from the beginning.
    (tmp_path / "journal" / "segments.jsonl").write_text("{")
    assert again.open() == ([], None)
    assert Journal(tmp_path / "journal", {"model": "b"}).open() == ([], None)
    again.remove()
    assert not (tmp_path / "journal").exists()


BAD = {
    "NaN": np.array([0.1] * 200 + [np.nan], np.float32),
    "infinite": np.array([0.1] * 200 + [np.inf]),
    "int64": np.full(201, 100),
    "uint8": np.full(201, 100, np.uint8),
}


@pytest.mark.parametrize("kind", BAD)
def test_samples_that_are_no_sound_are_refused_and_not_heard(kind):
    samples, message = BAD[kind], {"NaN": "NaN or infinite", "infinite": "NaN or infinite"}.get(kind, kind)
    recognizer = recognizer_of()
    with pytest.raises(AudioError, match=message):
        recognizer.transcribe([noise(300), samples])
    with pytest.raises(AudioError, match=message):
        recognizer((samples, 16_000))
    stream = LongFormStream(recognizer)
    live = LiveRecognizer(recognizer, ENDLESS)
    first, second = live.open(), live.open()
    for feed in (lambda: stream.feed(samples), lambda: live.feed({first: noise(300), second: samples})):
        with pytest.raises(AudioError, match=message):
            feed()
    # Nothing of it was heard.
    assert_same_words(words_of(hear(stream, noise(900), [200])), recognizer.transcribe([noise(900)])[0].words)
    heard = live.feed({first: noise(900)}, [first])[first]
    assert_same_words(words_of(heard), recognizer.transcribe([noise(900)])[0].words)


def test_integers_of_16_bits_are_scaled():
    recognizer = recognizer_of()
    samples = (1000 * noise(900)).astype(np.int16)
    heard, expected = recognizer.transcribe([samples, samples.astype(np.float32) / 32768])
    assert heard == expected
