"""The recipe of the nano recognisers, in a few steps."""

import argparse
import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor

from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.data.synth import synthesize
from mambavox.hubert import MambaHubertForPreTraining

RECIPE = Path(__file__).parents[2] / "recipes" / "recognition"


@pytest.fixture
def recipe(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    monkeypatch.syspath_prepend(str(RECIPE))
    import english
    import nano_recognizer

    # flite need not be there.
    monkeypatch.setattr(english, "flite", lambda text, voice: english.Spoken(synthesize(text), text, "en"))
    monkeypatch.setattr(nano_recognizer, "TEST_PHRASES", 4)
    monkeypatch.setattr(nano_recognizer, "POOL", 4)
    yield nano_recognizer
    for name in ("nano_recognizer", "checkpoints", "documents", "english", "phones", "speech"):
        sys.modules.pop(name, None)


@pytest.fixture
def plain(monkeypatch):
    """The module of what is heard, unchanged."""
    monkeypatch.syspath_prepend(str(RECIPE))
    import english

    yield english
    for name in ("english", "speech"):
        sys.modules.pop(name, None)


@pytest.fixture
def packs(tmp_path):
    """Texts and folders like the real ones."""
    data = tmp_path / "data"
    generator = np.random.default_rng(0)
    rows = {
        "librispeech_subset": [("one two", "train"), ("two three", "valid"), ("three one", "test_other")],
        "longform_en": [("One two. Three!", "dev")],
        "ssl_speech": [("two", "libri"), ("hey one", "wake"), ("three", "wake"), (None, "libri")],
    }
    for pack, recordings in rows.items():
        folder = data / pack
        folder.mkdir(parents=True)
        lines = []
        for number, (text, split) in enumerate(recordings):
            soundfile.write(folder / f"{number}.wav", 0.1 * generator.standard_normal(24_000), 16_000)
            segments = [{"start": 0.0, "end": 0.7, "text": "One two."}, {"start": 0.7, "end": 1.5, "text": "Three!"}]
            line = {"path": f"{number}.wav", "text": text, "language": "en"}
            part = {"source": split} if pack == "ssl_speech" else {"split": split, "segments": segments}
            lines.append(line | part)
        (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (data / "texts").mkdir()
    with gzip.open(data / "texts" / "cmudict.txt.gz", "wt") as file:
        file.write("SEVEN 1 S EH1 V AH0 N\n'TIS 1 T IH1 Z\nEIGHT 1 EY1 T\n")
    sentences = ("one two three", "two one", "three two one", "one one two", "three one")
    (data / "texts" / "en.tsv").write_text("".join(f"en\tsome\t{sentence}\n" for sentence in sentences))
    return data


def test_which_recordings_are_heard(recipe, packs):
    english = recipe.english
    real = [(path.relative_to(packs).as_posix(), text) for path, text in english.real_speech(packs)]
    assert real == [
        ("librispeech_subset/0.wav", "one two"),
        ("ssl_speech/0.wav", "two"),
        ("ssl_speech/1.wav", "hey one"),
    ], "neither valid nor test_other, nor every wake word, nor what has no transcript"
    first = [spoken.text for _, spoken in zip(range(40), english.English(packs, 0.5, seed=1), strict=False)]
    again = [spoken.text for _, spoken in zip(range(40), english.English(packs, 0.5, seed=1), strict=False)]
    assert first == again and 8 < sum(text in dict(real).values() for text in first) < 32
    assert all(set(text) <= set(recipe.LETTERS + " ") for text in first)


def test_phrases_that_test_are_of_held_out_sentences_and_always_the_same(recipe, packs):
    phrases, again = recipe.english.held_out(packs, 6), recipe.english.held_out(packs, 6)
    assert {letter for phrase in phrases for letter in phrase.text} <= set("three one "), "of the fifth sentence alone"
    assert [phrase.text for phrase in phrases] == [phrase.text for phrase in again]
    assert all(np.array_equal(one.waveform, other.waveform) for one, other in zip(phrases, again, strict=True))


def test_batches_hold_what_is_said_and_heard(recipe, packs):
    tokenizer = recipe.train_tokenizer([recipe.LETTERS])
    batches = recipe.Batches(recipe.english.English(packs, 0.3, seed=0), tokenizer, lambda samples: samples // 320)
    times = (("a", 0.1, 0.2), ("b", 0.2, 0.5))
    spoken = recipe.Spoken(np.ones(16_000, dtype=np.float32), "no more", "en", times)
    batch = batches.batch([spoken, recipe.Spoken(np.ones(8_000, dtype=np.float32), "yes", "en")])
    assert batch["attention_mask"].sum(1).tolist() == [16_000, 8_000]
    assert tokenizer.decode(batch["labels"][0]) == "no more" and (batch["labels"][1] >= 0).sum() == 3
    heard = batch["phones"][0].tolist()
    # a from 0.1 s, 60 ms later: in the frame that ends at 0.16 s, which is the 7th, from 0.14 s on.
    assert [frame for frame in range(50) if heard[frame] >= 0] == list(range(7, 27))
    assert len({*heard[7:12]}) == len({*heard[12:27]}) == 1 and heard[7] != heard[12]
    assert (batch["phones"][1] < 0).all()
    for _, made in zip(range(6), batches, strict=False):
        padded = made["input_values"]
        assert padded.shape[0] == 1 or padded.numel() <= recipe.BATCH_SECONDS * 16_000


def test_the_loss_of_phones_is_the_mean_over_known_frames(recipe):
    head, hidden_states = torch.nn.Linear(4, recipe.PHONES), torch.randn(2, 3, 4)
    classes = torch.tensor([[7, -100, -100], [-100, 400, 7]])
    known = [(0, 0, 7), (1, 1, 400), (1, 2, 7)]
    expected = -sum(head(hidden_states[b, t]).log_softmax(-1)[phone] for b, t, phone in known) / 3
    assert torch.allclose(recipe.phone_loss(head, hidden_states, classes), expected)
    assert recipe.phone_loss(head, hidden_states, torch.full_like(classes, -100)) == 0


def test_tables_and_a_plot_of_three_encoders(recipe, packs, tmp_path, monkeypatch, capsys):
    for encoder in (*recipe.CAUSAL, recipe.BIDIRECTIONAL):
        folder = tmp_path / "pretrained" / encoder / "it2"
        MambaHubertForPreTraining(tiny_config(encoder)).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    encoders = [*recipe.CAUSAL, recipe.BIDIRECTIONAL]
    words = ["--data", str(packs), "--pretrained", str(tmp_path / "pretrained"), "--output", str(tmp_path / "runs")]
    monkeypatch.setattr(
        sys, "argv", ["nano_recognizer.py", *words, "--seeds", "0", "1", "--steps", "1", "--encoders", *encoders]
    )
    rates, train = {}, recipe.train

    def note_rate(run, pretrained, seed, learning_rate, arguments):
        rates[run.name.split("-seed")[0]] = learning_rate
        train(run, pretrained, seed, learning_rate, arguments)

    monkeypatch.setattr(recipe, "train", note_rate)
    recipe.main()
    assert rates == recipe.LEARNING_RATES
    table = (tmp_path / "runs" / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()}
    encoders = [f"{encoder} {rate}" for encoder in (*recipe.CAUSAL, recipe.BIDIRECTIONAL) for rate in ("WER", "CER")]
    assert rows["%"] == encoders
    for name in (
        "valid",
        "phrases of espeak-ng",
        "phrases of flite",
        "test_other, 1 joined",
        "reading, pieces",
        "reading, whole",
    ):
        assert ["±" in cell for cell in rows[name]] == [True] * 4 + [False] * 2, name
    assert [bool(cell) for cell in rows["test_other, chunks of 0.32 + 0.16 s"]] == [False] * 4 + [True] * 2
    assert (tmp_path / "runs" / "documents.png").stat().st_size > 10_000
    monkeypatch.setattr(recipe, "score", None)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--learning-rate", "0.5"])
    recipe.main()
    assert (tmp_path / "runs" / "table.md").read_text() == table, "what was scored is not scored again"
    assert set(rates.values()) == {0.5}


def test_documents_are_recordings_joined_in_order(recipe):
    said = [(np.full(size, size, dtype=np.float32), str(size)) for size in (1, 2, 3)]
    joined = recipe.documents.join(said, 2)
    assert [(list(waveform), text) for waveform, text in joined] == [([1, 2, 2], "1 2"), ([3, 3, 3], "3")]


def test_an_interrupted_training_goes_on(recipe, packs, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pretrained"
    MambaHubertForPreTraining(tiny_config("mamba")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    options = {"data": packs, "steps": 4, "real_share": 0.3, "num_workers": 0}
    arguments = argparse.Namespace(**options)
    monkeypatch.setattr(recipe, "LOG_STEPS", 1)
    whole = recipe.losses
    calls = []

    def losses(*given):
        calls.append([parameter.detach().clone() for parameter in given[0].parameters()])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(recipe, "losses", losses)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(tmp_path / "run", str(folder), 0, 1e-3, arguments)
    recipe.train(tmp_path / "run", str(folder), 0, 1e-3, arguments)
    lines = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "letters" in line]
    assert lines == ["1/4", "2/4", "3/4", "4/4"]
    assert all(map(torch.equal, calls[2], calls[3])), "it goes on with the weights that it had"
    assert not all(map(torch.equal, calls[0], calls[2]))
    recognizer = SpeechRecognizer.from_pretrained(tmp_path / "run", device="cpu")
    assert all(getattr(recognizer.model.config, name) == 0 for name in recipe.DROPOUTS)
    recipe.train(tmp_path / "run", str(folder), 0, 1e-3, arguments)
    assert len(calls) == 5, "what is done is not done again"


def test_what_is_saved_is_put_back(recipe, tmp_path):
    def parts():
        module = torch.nn.Linear(2, 2)
        return {"module": module, "optimizer": torch.optim.AdamW(module.parameters())}

    trained, fresh = parts(), parts()
    assert recipe.load_state(tmp_path / "state.pt", **fresh) == 0
    trained["module"](torch.ones(2)).sum().backward()
    trained["optimizer"].step()
    recipe.save_state(tmp_path / "state.pt", 7, **trained)
    assert recipe.load_state(tmp_path / "state.pt", **fresh) == 7
    assert torch.equal(fresh["module"].weight, trained["module"].weight)
    moments = [part["optimizer"].state_dict()["state"][0]["exp_avg"] for part in (fresh, trained)]
    assert torch.equal(*moments)


def test_the_transformer_is_trained_without_dropout_too(recipe, packs, tmp_path, monkeypatch):
    folder = tmp_path / "pretrained"
    parts = ("activation", "attention", "feat_proj", "final", "hidden")
    dropouts = {"layerdrop": 0.5, **{f"{part}_dropout": 0.5 for part in parts}}
    MambaHubertForPreTraining(tiny_config("causal-transformer", **dropouts)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    options = {"data": packs, "steps": 1, "real_share": 0.3, "num_workers": 0}
    whole, found = recipe.losses, []

    def losses(model, head, batch):
        found.extend(whole(model, head, dict(batch)) for _ in range(2))
        return found[0]

    monkeypatch.setattr(recipe, "losses", losses)
    recipe.train(tmp_path / "run", str(folder), 0, 1e-3, argparse.Namespace(**options))
    assert torch.equal(*found)


def test_a_recogniser_that_there_is_can_be_scored(recipe, packs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nano_recognizer.py", "--data", str(packs), "--score", "nano-mamba-ctc"])
    recipe.main()
    printed = capsys.readouterr().out
    assert "nano-mamba-ctc WER" in printed and "| phrases of flite | " in printed and "chunks" not in printed
    (rates,) = re.findall(r"\| valid \| ([\d.]+) \| ([\d.]+) \|", printed)
    assert all(float(rate) > 50 for rate in rates), "it is noise that is said to be two three"


def test_workers_hear_different_speech(recipe, packs):
    heard = iter(recipe.DataLoader(recipe.english.English(packs, 0.0, seed=1), None, num_workers=2))
    texts = [(next(heard).text, next(heard).text) for _ in range(4)]
    assert any(one != other for one, other in texts)


def test_trimming_moves_all_times(recipe):
    waveform = np.zeros(16_000, dtype=np.float32)
    waveform[4_000:12_000] = 0.5
    spoken = recipe.Spoken(waveform, "ab", "en", (("a", 0.2, 0.5), ("b", 0.5, 0.8)), ((0, 0.2), (1, 0.5), (2, 1.0)))
    trimmed = spoken.trimmed()
    assert len(trimmed.waveform) == 8_000 and (trimmed.waveform == 0.5).all()
    assert trimmed.phones == (("a", pytest.approx(-0.05), 0.25), ("b", 0.25, pytest.approx(0.55)))
    assert trimmed.letters == ((0, 0.0), (1, 0.25), (2, 0.5))
    assert spoken.moved(0.1, 2.0).letters == ((0, pytest.approx(0.6)), (1, 1.2), (2, 2.2))
    silent = recipe.Spoken(np.zeros(100, dtype=np.float32), "a", "en", (("a", 0.0, 0.1),)).trimmed()
    assert len(silent.waveform) == 0 and silent.phones == ()


def test_words_of_the_dictionary_are_for_training(recipe, packs):
    train = recipe.english.read_texts(packs / "texts", "train", ["a hundred please"])
    assert train.words["en"] == ["eight", "seven"]
    assert train.sentences["en"][-1] == "a hundred please" and "three one" not in train.sentences["en"]
    held_out = recipe.english.read_texts(packs / "texts", "test")
    assert held_out.sentences["en"] == ["three one"] and held_out.words["en"] == ["one", "three"]


def test_alterations_are_drawn_and_keep_the_speech(recipe):
    waveform = synthesize("one two three four")
    seconds = len(waveform) / 16_000
    spoken = recipe.Spoken(waveform, "one two three four", "en", (("w", 0.0, seconds),))
    altered = [recipe.english.alter(spoken, np.random.default_rng(seed)) for seed in range(20)]
    lengths = [len(item.waveform) / len(waveform) for item in altered]
    assert 0.86 < min(lengths) < 0.93 and 1.08 < max(lengths) < 1.16
    assert all(abs(item.phones[0][2] - len(item.waveform) / 16_000) < 0.001 for item in altered)
    peaks = [float(np.abs(item.waveform).max()) for item in altered]
    assert 0.05 < min(peaks) < max(peaks) < 1 and altered[0].waveform.dtype == np.float32
    again = recipe.english.alter(spoken, np.random.default_rng(3))
    assert np.array_equal(again.waveform, altered[3].waveform)


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_flite_speaks(plain):
    spoken = plain.flite("one two three", "slt")
    assert 0.8 < len(spoken.waveform) / 16_000 < 3 and 0.1 < np.abs(spoken.waveform).max() < 1
    names = [name for name, _, _ in spoken.phones]
    assert names == [f"flite {name}" for name in ("pau", "w", "ah", "n", "t", "uw", "th", "r", "iy", "pau")]
    assert spoken.phones[-1][2] == pytest.approx(len(spoken.waveform) / 16_000, abs=0.1)
    assert all(end == begin for (_, _, end), (_, begin, _) in zip(spoken.phones, spoken.phones[1:], strict=False))


def test_without_flite_it_is_told(plain, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="apt-get install flite"):
        plain.flite("one", "slt")


def test_no_bidirectional_model_is_embedded(recipe, packs, monkeypatch, capsys):
    words = ["--data", str(packs), "--output", "runs", "--encoders", "ext-bimamba"]
    monkeypatch.setattr(sys, "argv", ["nano_recognizer.py", *words])
    with pytest.raises(SystemExit):
        recipe.main()
    assert "expected --pretrained" in capsys.readouterr().err
