"""Transcripts of a real Whisper beside those of transformers, with which they share the weights but not the way."""

from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real.conftest import RATE, rows_of

from mambavox.asr.metrics import score_transcripts
from mambavox.asr.speech_windows import SpeechDetector
from mambavox.asr.text import normalize_text
from mambavox.asr.transcript import Transcript
from mambavox.asr.whisper import BASE, WhisperTranscriber
from mambavox.asr.whisper_decoding import WhisperDecoding
from mambavox.asr.whisper_hearing import Asked, WindowHearing
from mambavox.data import read_audio
from mambavox.hub import quiet_transformers

pytestmark = pytest.mark.real


@pytest.fixture
def transcriber(loaded: tuple[Any, Any]) -> WhisperTranscriber:
    return WhisperTranscriber(*loaded, {BASE: None})


def theirs(loaded: tuple[Any, Any], waveforms: list[np.ndarray], **options: Any) -> Any:
    """What transformers' own generate gives."""
    model, processor = loaded
    long = {"truncation": False, "padding": "longest"} if len(waveforms[0]) > 30 * RATE else {}
    inputs = processor.feature_extractor(
        waveforms, sampling_rate=RATE, return_attention_mask=True, return_tensors="pt", **long
    )
    asked = {"language": "en", "task": "transcribe", **options}
    with torch.inference_mode(), quiet_transformers():
        return model.generate(input_features=inputs.input_features, attention_mask=inputs.attention_mask, **asked)


@pytest.mark.parametrize("beams", [1, 5])
def test_short_recordings_word_for_word(
    beams: int, transcriber: WhisperTranscriber, loaded: tuple[Any, Any], clips: list[np.ndarray]
) -> None:
    expected = loaded[1].batch_decode(theirs(loaded, clips, num_beams=beams), skip_special_tokens=True)
    found = transcriber.transcribe(clips, "en", decoding=WhisperDecoding(num_beams=beams))
    assert [item.text for item in found] == [text.strip() for text in expected]
    assert all(len(item.text.split()) > 4 for item in found)


@pytest.mark.parametrize("beams", [1, 5])
def test_a_long_recording_word_for_word_and_second_for_second(
    beams: int, transcriber: WhisperTranscriber, loaded: tuple[Any, Any], talk: np.ndarray
) -> None:
    talk = talk[: 45 * RATE] if beams > 1 else talk
    options = {"return_timestamps": True, "return_segments": True, "num_beams": beams}
    segments = theirs(loaded, [talk], **options)["segments"][0]
    words = [[token for token in segment["tokens"].tolist() if token < 50257] for segment in segments]
    texts = [text.strip() for text in loaded[1].batch_decode(words)]
    (found,) = transcriber.transcribe([talk], "en", decoding=WhisperDecoding(num_beams=beams), long_form="sequential")
    assert [segment.text for segment in found.segments] == texts and len(texts) > 5
    seconds = len(talk) / RATE
    for segment, other in zip(found.segments, segments, strict=True):
        assert segment.start == pytest.approx(float(other["start"]), abs=1e-4)
        assert segment.end == pytest.approx(min(float(other["end"]), seconds), abs=1e-4)


def test_windows_of_several_recordings_in_one_batch(
    transcriber: WhisperTranscriber, talk: np.ndarray, clips: list[np.ndarray]
) -> None:
    """A recording is heard the same alone and among others; cut in pauses it says what it says window after window."""
    together = transcriber.transcribe([talk, *clips], "en", batch_size=4, timestamps=True)
    for transcript, waveform in zip(together[1:], clips, strict=True):
        assert transcript.text == transcriber.transcribe([waveform], "en")[0].text
    (sequential,) = transcriber.transcribe([talk], "en", long_form="sequential")
    words, others = (normalize_text(item.text, "en").split() for item in (together[0], sequential))
    assert SequenceMatcher(None, words, others).ratio() > 0.93
    check_times(together[0])


def check_times(transcript: Transcript) -> None:
    words = transcript.words
    assert words and all(0 <= word.start <= word.end <= transcript.seconds + 0.021 for word in words)
    assert all(one.end <= other.end for one, other in pairwise(words))
    assert " ".join(word.text for word in words) == transcript.text
    assert all(word.confidence is not None and 0 < word.confidence <= 1 for word in words)


def test_tokens_end_when_transformers_says_so(loaded: tuple[Any, Any], clips: list[np.ndarray]) -> None:
    """By the same heads; transformers reads the attention of each step, not of the text as a whole."""
    model, processor = loaded
    found = WindowHearing(model, processor.tokenizer, WhisperDecoding())
    extracted = processor.feature_extractor(clips, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    frames = extracted.attention_mask.sum(-1).tolist()
    heard = found.hear(extracted.input_features, frames, Asked(["en"] * len(clips), words=True))
    assert model.config._attn_implementation == "sdpa"
    for row, item in enumerate(heard):
        options = {"language": "en", "task": "transcribe", "return_token_timestamps": True}
        try:
            with torch.inference_mode(), quiet_transformers():
                theirs = model.generate(
                    input_features=extracted.input_features[row : row + 1],
                    attention_mask=extracted.attention_mask[row : row + 1],
                    **options,
                )
        finally:
            model.set_attn_implementation("sdpa")  # which transformers leaves changed
        assert tuple(theirs["sequences"][0].tolist()) == item.tokens
        times = theirs["token_timestamps"][0].numpy()
        apart = np.abs(times[: len(item.tokens)] - np.array(item.times[1:]))[1:]  # it leaves out the first
        assert np.median(apart) <= 0.021 and np.mean(apart < 0.1) > 0.9, apart


def test_the_language_is_detected(transcriber: WhisperTranscriber, loaded: tuple[Any, Any], recordings: Path) -> None:
    rows = [rows_of(recordings / "multilingual_asr", language=code)[0] for code in ("de", "nl", "de")]
    waveforms = [read_audio(row["file"], RATE) for row in rows]
    features = loaded[1].feature_extractor(waveforms, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.inference_mode():
        tokens = loaded[0].detect_language(features).tolist()
    expected = [loaded[1].tokenizer.decode([token])[2:-2] for token in tokens]
    found = transcriber.transcribe(waveforms)
    assert [item.language for item in found] == expected == ["de", "nl", "de"]
    # The whole of a long recording is in the language of its beginning.
    joined = np.concatenate([waveforms[0]] * 12)
    assert len(joined) > 30 * RATE
    assert transcriber.transcribe([joined])[0] == transcriber.transcribe([joined], "de")[0]


def test_speech_is_translated(transcriber: WhisperTranscriber, loaded: tuple[Any, Any], recordings: Path) -> None:
    waveform = read_audio(rows_of(recordings / "multilingual_asr", language="de")[0]["file"], RATE)
    expected = theirs(loaded, [waveform], language="de", task="translate")
    (found,) = transcriber.transcribe([waveform], "de", decoding=WhisperDecoding(task="translate"), timestamps=True)
    assert found.text == loaded[1].batch_decode(expected, skip_special_tokens=True)[0].strip()
    assert found.language == "de" and found.text != transcriber.transcribe([waveform], "de")[0].text
    check_times(found)


def test_a_prompt_is_gone_on_with(
    transcriber: WhisperTranscriber, loaded: tuple[Any, Any], clips: list[np.ndarray]
) -> None:
    prompt = "mister thornton, margaret hale"
    ids = torch.from_numpy(loaded[1].tokenizer.get_prompt_ids(prompt)).long()
    expected = loaded[1].batch_decode(theirs(loaded, clips, prompt_ids=ids), skip_special_tokens=True)
    found = transcriber.transcribe(clips, "en", decoding=WhisperDecoding(prompt=prompt))
    assert [item.text for item in found] == [text.replace(prompt, "").strip() for text in expected]


def test_silence_and_noise_are_not_transcribed(transcriber: WhisperTranscriber, clips: list[np.ndarray]) -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32)
    quiet = np.zeros(8 * RATE, np.float32)
    careful = WhisperDecoding(no_speech_threshold=0.6, logprob_threshold=-1.0)
    pytest.importorskip("silero_vad")
    detector = SpeechDetector()
    sounds = [quiet, noise, np.concatenate([quiet, clips[0], noise])]
    heard = transcriber.transcribe(sounds, "en", decoding=careful, detector=detector, timestamps=True)
    assert [item.text for item in heard[:2]] == ["", ""] and heard[0].segments == ()
    alone = transcriber.transcribe([clips[0]], "en")[0].text
    assert SequenceMatcher(None, heard[2].text, alone).ratio() > 0.7, (heard[2].text, alone)
    assert heard[2].words[0].start > 7.5 and heard[2].words[-1].end < 8.5 + len(clips[0]) / RATE


def test_a_text_that_is_too_long_for_the_decoder_is_heard_in_parts(
    transcriber: WhisperTranscriber, talk: np.ndarray
) -> None:
    """As with scripts that take three tokens a letter; with the limit of a run the cut is told."""
    waveform = talk[: 25 * RATE]
    (whole,) = transcriber.transcribe([waveform], "en")
    transcriber.host.config.max_target_positions, before = 60, transcriber.host.config.max_target_positions
    try:
        transcriber.max_new_tokens = 56
        (parts,) = transcriber.transcribe([waveform], "en")
        transcriber.max_new_tokens = 20
        (cut,) = transcriber.transcribe([waveform], "en")
    finally:
        transcriber.host.config.max_target_positions = before
    assert not whole.notes and not parts.notes and len(parts.segments) > 1
    words, others = (normalize_text(item.text, "en").split() for item in (whole, parts))
    assert SequenceMatcher(None, words, others).ratio() > 0.85
    assert cut.notes == (
        "00:00:00.000 to 00:00:25.000: the text reached 20 tokens, the most that are generated; "
        "the rest of it is missing",
    )


def test_bfloat16(loaded: tuple[Any, Any], fresh: Any, recordings: Path, transcriber: WhisperTranscriber) -> None:
    rows = rows_of(recordings / "librispeech_subset", split="test_other")[:6]
    waveforms = [read_audio(row["file"], RATE) for row in rows]
    references = [normalize_text(row["text"], "en") for row in rows]
    rates = []
    for each in (transcriber, WhisperTranscriber(fresh().bfloat16(), loaded[1], {BASE: None})):
        heard = each.transcribe(waveforms, "en", timestamps=True)
        texts = [normalize_text(item.text, "en") for item in heard]
        rates.append(score_transcripts(references, texts).rates["wer"])
    assert abs(rates[0] - rates[1]) < 0.03 and rates[0] < 0.3, rates
