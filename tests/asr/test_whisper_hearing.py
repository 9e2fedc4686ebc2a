"""Windows through a tiny Whisper: batches, word times, searches that fail, texts that are too long."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tiny import save_whisper
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from mambavox.asr import whisper_long
from mambavox.asr.transcript import Word, group_words
from mambavox.asr.whisper import BASE, WhisperTranscriber, load_whisper
from mambavox.asr.whisper_alignment import AlignmentHeads, _cheapest_path, token_times, words_of_tokens
from mambavox.asr.whisper_decoding import WhisperDecoding
from mambavox.asr.whisper_long import timed_pieces
from mambavox.errors import ConfigError

RATE = 16_000


def tone(seconds: float, frequency: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(RATE * seconds)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    model, processor = load_whisper(str(save_whisper(tmp_path_factory.mktemp("whisper") / "tiny")))
    # Ends after some tokens, the likelier the later.
    torch.nn.init.normal_(model.get_decoder().embed_positions.weight, std=0.3)
    return model.eval(), processor


@pytest.fixture
def transcriber(loaded: tuple[Any, Any]) -> WhisperTranscriber:
    return WhisperTranscriber(*loaded, {BASE: None}, max_new_tokens=12)


@pytest.mark.parametrize("shape", [(1, 5), (6, 1), (5, 3), (7, 30)])
def test_the_cheapest_path_is_that_of_transformers(shape: tuple[int, int]) -> None:
    costs = np.random.default_rng(0).standard_normal(shape)
    rows, columns = _dynamic_time_warping(costs)
    assert _cheapest_path(costs).tolist() == columns[np.diff(rows, prepend=-1).astype(bool)].tolist()


def test_tokens_begin_where_their_attention_lies() -> None:
    weights = torch.full((2, 4, 40), 0.01)
    for token, frames in enumerate((range(0, 10), range(10, 18), range(18, 30), range(30, 36))):
        weights[:, token, list(frames)] = 1.0
    assert token_times(weights, 36) == pytest.approx([0.0, 0.2, 0.36, 0.6], abs=0.03)


def test_alignment_heads_leave_the_model_as_it_was(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    features = torch.randn(2, 16, 100)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    before = model.config._attn_implementation
    heads = AlignmentHeads(model)
    assert heads.heads == [(1, 0), (1, 1)], "the upper half, where none are named"
    with torch.no_grad():
        with heads.recording() as found:
            model(input_features=features, decoder_input_ids=ids)
        assert [weights.shape for weights in found] == [(2, 2, 3, 50)]
        torch.testing.assert_close(found[0].sum(-1), torch.ones(2, 2, 3))
        assert model.config._attn_implementation == before == "sdpa"
        model(input_features=features, decoder_input_ids=ids)
    assert len(found) == 1


def test_words_of_several_scripts(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1].tokenizer
    for text, language, expected in (
        (" ab, cd.", "en", ["ab,", "cd."]),
        (" ab-cd 'e (f) g", "en", ["ab-cd", "'e", "(f)", "g"]),
        (" ይህ ነው", "am", ["ይህ", "ነው"]),
        ("你好", "zh", ["你", "好"]),
    ):
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        times = 0.1 * np.arange(len(tokens) + 1)
        words = words_of_tokens(tokens, times, [-0.5] * len(tokens), tokenizer, language)
        assert [word.text for word in words] == expected
        assert words[0].start == 0 and all(one.end <= other.start for one, other in pairwise(words))
        assert words[0].confidence == pytest.approx(np.exp(-0.5), abs=1e-4)
        line = group_words(words, "" if language == "zh" else " ")[0]
        assert line.text == text.strip() and line.lines()[0].text == line.text
    assert words_of_tokens([], np.zeros(1), [], tokenizer, "en") == ()
    comma = words_of_tokens(
        tokenizer(" ab,", add_special_tokens=False).input_ids,
        np.array([0, 0.1, 0.2, 0.3, 9.0]),
        [-0.5] * 4,
        tokenizer,
        "en",
    )
    assert comma == (Word("ab,", 0.0, 0.3, 0.6065),), "the pause behind a comma is not in the word"


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_batch_of_windows_says_what_each_says_alone(transcriber: WhisperTranscriber, timestamps: bool) -> None:
    sounds = [tone(2.6), tone(0.5, 900.0), np.concatenate([tone(0.9), tone(0.9, 300.0)])]
    together = transcriber.transcribe(sounds, "de", timestamps=timestamps, batch_size=3)
    assert together == [transcriber.transcribe([sound], "de", timestamps=timestamps)[0] for sound in sounds]
    assert len(together[0].notes) >= 3, "cut at twelve tokens in each window"


def test_a_failed_search_is_tried_again_alike_in_every_batch(
    transcriber: WhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds = [tone(0.4 + 0.1 * number, 300.0 * (number + 1)) for number in range(3)]
    greedy = transcriber.transcribe(sounds, "de")
    drawn = transcriber.transcribe(sounds, "de", decoding=WhisperDecoding(temperatures=(0.8,)))
    assert [item.text for item in drawn] != [item.text for item in greedy]
    state = torch.random.get_rng_state()
    assert transcriber.transcribe(sounds[1:2], "de", decoding=WhisperDecoding(temperatures=(0.8,)))[0] == drawn[1]
    assert torch.equal(state, torch.random.get_rng_state())
    content = WhisperDecoding(temperatures=(0.0, 0.8), logprob_threshold=-99.0)
    assert transcriber.transcribe(sounds, "de", decoding=content) == greedy
    never = WhisperDecoding(temperatures=(0.0, 0.8), logprob_threshold=0.0)
    assert transcriber.transcribe(sounds, "de", decoding=never) == greedy, "all fail: the likeliest is kept"
    texts = {item.text for item in greedy}
    monkeypatch.setattr(WhisperDecoding, "fails", lambda self, text, logprob: text in texts)
    again = transcriber.transcribe(sounds, "de", decoding=never)
    assert [item.text for item in again] == [item.text for item in drawn]


def test_silence_is_left_out(transcriber: WhisperTranscriber) -> None:
    always = WhisperDecoding(no_speech_threshold=0.0)
    (heard,) = transcriber.transcribe([tone(2.6)], "de", decoding=always, timestamps=True)
    assert heard.text == "" and heard.segments == () and heard.seconds == pytest.approx(2.6)
    (heard,) = transcriber.transcribe([np.zeros(RATE, np.float32)], "de")
    assert heard.text == "", "digital silence"


def test_what_is_longer_than_the_decoder_takes_is_heard_in_halves(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    monkeypatch.setattr(model.config, "max_target_positions", 12)
    transcriber = WhisperTranscriber(model, processor, {BASE: None})
    sound = np.concatenate([tone(0.5), np.zeros(1600, np.float32), tone(0.3, 900.0)])
    (heard,) = transcriber.transcribe([sound], "de")
    (note,) = heard.notes
    assert (
        "0 to 00:00:00.900: the text reached 8 tokens, the most that are generated; the rest of it is missing" in note
    )
    monkeypatch.setattr(whisper_long, "_SHORTEST", 0.6)
    (heard,) = transcriber.transcribe([sound], "de")
    assert len(heard.segments) == len(heard.notes) == 2
    assert 0.45 < heard.segments[0].end == heard.segments[1].start < 0.65


def test_pieces_between_timestamps() -> None:
    begin = 100
    assert timed_pieces((), begin, 50) == ([], 50)
    assert timed_pieces((1, 2), begin, 50) == ([(0.0, 0.5, (1, 2))], 50)
    assert timed_pieces((100, 1, 110), begin, 50) == ([(0.0, pytest.approx(0.2), (100, 1, 110))], 50)
    pieces, ahead = timed_pieces((100, 1, 110, 110, 2, 120, 120, 3), begin, 50)
    assert [tokens for *_, tokens in pieces] == [(100, 1, 110), (110, 2, 120)] and ahead == 40
    pieces, ahead = timed_pieces((100, 1, 110, 110, 2, 120), begin, 50)
    assert [tokens for *_, tokens in pieces] == [(100, 1, 110), (110, 2, 120)] and ahead == 50
    assert timed_pieces((100, 1, 100, 100), begin, 50)[1] == 50, "it goes on, however"


def test_mistakes(transcriber: WhisperTranscriber, loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"the prompt has \d+ tokens; expected at most 46: shorten it"):
        transcriber.transcribe([tone(0.5)], "de", decoding=WhisperDecoding(prompt="ab" * 60))
    with pytest.raises(ConfigError, match="leave out long_form=sequential"):
        transcriber.transcribe([tone(0.5)], "de", long_form="sequential", detector=lambda *_: [])
    config = loaded[0].generation_config
    config.task_to_id, before = None, config.task_to_id
    try:
        with pytest.raises(ConfigError, match="made for one language cannot translate"):
            transcriber.transcribe([tone(0.5)], "de", decoding=WhisperDecoding(task="translate"))
    finally:
        config.task_to_id = before


def test_a_prompt_changes_the_text_and_is_not_in_it(transcriber: WhisperTranscriber) -> None:
    plain, prompted = (
        transcriber.transcribe([tone(0.8)], "de", decoding=decoding, timestamps=True)[0]
        for decoding in (None, WhisperDecoding(prompt="cab"))
    )
    assert prompted.text != plain.text and "cab" not in prompted.text
    assert "".join(word.text for word in prompted.words) == prompted.text.replace(" ", "")
