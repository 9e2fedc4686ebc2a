"""The recipe of nano-whisper, in a few steps."""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

RECIPE = Path(__file__).parents[2] / "recipes" / "recognition"


@pytest.fixture(autouse=True)
def recipe_path(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    monkeypatch.syspath_prepend(str(RECIPE))
    yield
    for name in ("nano_whisper", "checkpoints", "phones", "speech"):
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
    letters = {"de": set("eins zwei drei vier fünf"), "en": set("one two")}
    assert all(set(item.text) <= letters[item.language] for item in drawn[0])


def test_words_are_invented_from_the_spelling_of_a_language():
    import speech

    texts = speech.Texts({"de": ["banana bandana"], "en": ["abab"]})
    generator = np.random.default_rng(0)
    words = {texts.invent("de", generator) for _ in range(200)}
    assert {"banana", "bandana"} < words and set("".join(words)) == set("band")
    assert max(len(texts.invent("en", generator)) for _ in range(200)) <= 14
    phrases = [texts.phrase("de", generator).split() for _ in range(200)]
    assert {len(phrase) for phrase in phrases} == set(range(1, 10))
    assert any(word not in ("banana", "bandana") for phrase in phrases for word in phrase)


def test_tokens_are_whispers():
    import nano_whisper as train

    tokenizer = train.make_tokenizer(["eins zwei drei vier", "один два три"] * 3, ("de", "ru"), size=300)
    text = " eins два ქართული"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    model = train.make_model(tokenizer, ("de", "ru"))
    assert set(model.generation_config.lang_to_id) == {"<|de|>", "<|ru|>"}
    stamp = tokenizer.convert_tokens_to_ids("<|0.00|>")
    assert stamp == model.generation_config.no_timestamps_token_id + 1 and len(tokenizer) == stamp + 601
    processor = WhisperProcessor(train.WhisperFeatureExtractor(feature_size=80, chunk_length=12), tokenizer)
    spoken = train.Spoken(np.zeros(16_000, np.float32), "два", "ru")
    batch = train.Batches([], processor, batch_size=1, whole=0.0, timestamps=1.0).batch([spoken])
    with_stamps = batch["labels"][0].tolist()
    assert tokenizer.convert_ids_to_tokens(with_stamps[:3]) == ["<|ru|>", "<|transcribe|>", "<|0.00|>"]
    assert tokenizer.convert_ids_to_tokens(with_stamps[-2:]) == ["<|1.00|>", "<|endoftext|>"]
    assert (batch["phones"] < 0).all() and (batch["times"] < 0).all(), "nobody knows what is heard when"
    assert batch["input_features"].shape == (1, 80, 100)
    assert train.Batches([], processor, batch_size=1, whole=1.0).batch([spoken])["input_features"].shape[-1] == 1200


def test_what_is_heard_when():
    import nano_whisper as train
    import speech

    texts = speech.Texts({"en": ["seven small cats", "a dog"]})
    stream = iter(speech.Speech(texts, {"en": "en-us"}, [], noise=0.0, seed=0))
    spoken = next(item for item in stream if item.text.count(" ") >= 2)
    seconds = len(spoken.waveform) / speech.RATE
    places, times = zip(*spoken.letters, strict=True)
    assert list(places) == sorted(places) and list(times) == sorted(times)
    assert places[0] == 0 and times[0] < 0.1 and spoken.letters[-1] == (len(spoken.text), seconds)
    frames = round(50 * seconds)
    classes = train.phone_classes(spoken, frames + 10)
    heard = [place for place in classes[:frames] if place >= 0]
    assert len(heard) >= frames - 1 and len(set(heard)) >= 5 and set(classes[frames + 1 :]) == {-100}
    tokenizer = train.make_tokenizer(["seven small cats a dog"] * 3, ("en",), size=280)
    processor = WhisperProcessor(train.WhisperFeatureExtractor(feature_size=80, chunk_length=12), tokenizer)
    batch = train.Batches([], processor, batch_size=1, whole=0.0, timestamps=0.0).batch([spoken])
    said = batch["times"][0][3:-1]
    assert (batch["times"][0][:3] < 0).all() and batch["times"][0][-1] < 0
    assert len(said) > 3 and (said.diff() > 0).all() and 0 <= said[0] < said[-1] < frames


def test_a_short_window_is_the_beginning_of_a_whole_one():
    """The encoder of a short window has the positions of its frames; the whole one is there again afterwards."""
    import nano_whisper as train

    tokenizer = train.make_tokenizer(["eins zwei drei vier"] * 3, ("de",), size=300)
    model = train.make_model(tokenizer, ("de",)).eval()
    head = torch.nn.Linear(model.config.d_model, train.PHONES)
    said = tokenizer(" eins", add_special_tokens=False).input_ids
    batch = {
        "input_features": torch.randn(1, 80, 200),
        "labels": torch.tensor([[*said, tokenizer.eos_token_id]]),
        "times": torch.tensor([[20.0] * len(said) + [-100.0]]),
        "phones": torch.full((1, 100), 7),
    }
    loss, phones, aligned = train.losses(model, head, batch)
    assert loss > 0 and phones > 0 and aligned > 1, "random attention is anywhere"
    everywhere = {**batch, "times": torch.full_like(batch["times"], -100.0)}
    assert train.losses(model, head, everywhere)[2] == 0
    train.window(model, 200)
    short = model.model.encoder(batch["input_features"]).last_hidden_state
    train.window(model, 100 * train.SECONDS)
    assert short.shape[1] == 100
    assert model.model.encoder(torch.randn(1, 80, 1200)).last_hidden_state.shape[1] == 600


AVERAGE = """
import sys
sys.path.insert(0, sys.argv[1])
import nano_whisper as train, torch
rank = train.PartialState(cpu=True).process_index
learners = torch.nn.Linear(2, 2)
learners.weight.grad = torch.full((2, 2), 1.0 + 2 * rank)
train.average_gradients(learners)
assert learners.weight.grad.tolist() == [[2.0, 2.0], [2.0, 2.0]] and learners.bias.grad is None
open(f"{sys.argv[2]}/averaged-{rank}", "w").close()
"""


@pytest.mark.slow
def test_processes_have_the_mean_of_their_gradients(tmp_path):
    script = tmp_path / "average.py"
    script.write_text(AVERAGE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launch, str(script), str(RECIPE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    # In files: what two processes print can lie inside each other.
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("averaged-*")} == {"averaged-0", "averaged-1"}


def test_a_few_steps_an_interruption_and_what_is_written(recordings, tmp_path, monkeypatch, capsys):
    import nano_whisper as train

    monkeypatch.setattr(train, "LOG_STEPS", 1)
    monkeypatch.setattr(train, "real_speech", lambda *args: train_real(args))

    def train_real(args):
        import speech

        return speech.real_speech(*args)[:3]

    options = {"data": recordings, "output": tmp_path, "batch_size": 2, "learning_rate": 1e-3, "real_share": 0.5}
    options |= {"test_phrases": 1, "num_workers": 0, "device": "cpu", "seed": 0}
    train.train(argparse.Namespace(**options, steps=2))
    assert (tmp_path / "model.safetensors").stat().st_size <= train.MOST_BYTES
    rates = train.train(argparse.Namespace(**options, steps=3))
    assert {name.removesuffix(", real") for name in rates} <= set(train.SEEN)
    assert sum(not name.endswith("real") for name in rates) == 12 and all(
        score.cer.rate > 0 for score in rates.values()
    )
    monkeypatch.setattr(
        sys, "argv", ["", *map(str, ("--data", recordings, "--output", tmp_path, "--test-phrases", 1)), "--score"]
    )
    train.main()
    assert capsys.readouterr().out.count("WER") == 3 * len(rates)
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path, dtype="float32")
    processor = WhisperProcessor.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(processor.tokenizer) and model.config.dropout == 0.0
