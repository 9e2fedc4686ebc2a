"""The recipe of nano-whisper, in a few steps."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperForConditionalGeneration, WhisperProcessor

RECIPE = Path(__file__).parents[2] / "recipes" / "nano_whisper"


@pytest.fixture(autouse=True)
def recipe_path(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    monkeypatch.syspath_prepend(str(RECIPE))
    yield
    for name in ("train", "speech"):
        sys.modules.pop(name, None)


def test_speech_is_drawn_as_the_seed_says():
    import speech

    texts = speech.Texts({"de": ["eins zwei drei", "vier fünf"], "en": ["one two"]})
    drawn = []
    for seed in (0, 0, 1):
        stream = iter(speech.Speech(texts, {"de": "de", "en": "en-us"}, [], seed=seed))
        drawn.append([next(stream) for _ in range(4)])
    for first, second in zip(drawn[0], drawn[1], strict=True):
        assert first.text == second.text and np.array_equal(first.waveform, second.waveform)
    assert [item.text for item in drawn[0]] != [item.text for item in drawn[2]]
    assert {word for item in drawn[0] for word in item.text.split()} <= {
        *("eins", "zwei", "drei", "vier", "fünf", "one", "two")
    }


def test_tokens_are_whispers():
    import train

    tokenizer = train.make_tokenizer(["eins zwei drei vier", "один два три"] * 3, ("de", "ru"), size=300)
    text = " eins два ქართული"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    model = train.make_model(tokenizer, ("de", "ru"))
    assert set(model.generation_config.lang_to_id) == {"<|de|>", "<|ru|>"}
    stamp = tokenizer.convert_tokens_to_ids("<|0.00|>")
    assert stamp == model.generation_config.no_timestamps_token_id + 1 and len(tokenizer) == stamp + 601
    processor = WhisperProcessor(train.WhisperFeatureExtractor(feature_size=80, chunk_length=12), tokenizer)
    spoken = train.Spoken(np.zeros(16_000, np.float32), "два", "ru")
    with_stamps = train.Collator(processor, timestamps=1.0)([spoken])["labels"][0].tolist()
    assert tokenizer.convert_ids_to_tokens(with_stamps[:3]) == ["<|ru|>", "<|transcribe|>", "<|0.00|>"]
    assert tokenizer.convert_ids_to_tokens(with_stamps[-2:]) == ["<|1.00|>", "<|endoftext|>"]


def test_a_few_steps_an_interruption_and_what_is_written(recordings, tmp_path, monkeypatch):
    import train

    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 1)
    monkeypatch.setattr(train, "real_speech", lambda *args: train_real(args))

    def train_real(args):
        import speech

        return speech.real_speech(*args)[:3]

    options = {"data": recordings, "output": tmp_path, "batch_size": 2, "learning_rate": 1e-3, "real_share": 0.5}
    options |= {"test_phrases": 1, "num_workers": 0, "device": "cpu", "seed": 0}
    train.train(argparse.Namespace(**options, steps=2))
    assert (tmp_path / "model.safetensors").stat().st_size <= train.MOST_BYTES
    rates = train.train(argparse.Namespace(**options, steps=3))
    assert set(rates) <= set(train.SEEN) and len(rates) >= 11
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path, dtype="float32")
    processor = WhisperProcessor.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(processor.tokenizer) and model.config.dropout == 0.0
