"""Masks, losses and what transformers and PEFT load of a run."""

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from training.devices import pretend_two_gpus
from transformers import AutoModelForCTC, AutoTokenizer, Trainer

import mambavox.adapters  # noqa: F401
from mambavox.asr.model import collate_waveforms, ctc_log_probs, load_ctc_model, num_frames
from mambavox.hub import load_extractor
from mambavox.training.ctc.config import CtcConfig
from mambavox.training.ctc.data import SpeechCollator
from mambavox.training.ctc.objective import collapse, ctc_loss, hidden_spans
from mambavox.training.run import run as train


@pytest.fixture(params=["mamba", "wav2vec2", "hubert", "wavlm"])
def host(request, tiny_mamba, backbone):
    folder = tiny_mamba if request.param == "mamba" else backbone(request.param)
    return load_ctc_model(folder, 7, 0).eval(), load_extractor(folder)


def items(count=3):
    return [
        {"waveform": torch.randn(4000 + 700 * row).numpy(), "ids": [1, 2, 3], "draw": (0, row)} for row in range(count)
    ]


def test_hidden_frames_are_not_heard(host):
    model, extractor = host
    batch = collate_waveforms([item["waveform"] for item in items(1)], extractor, model.config)
    time = num_frames(model, batch["input_values"].shape[1])
    frames = torch.ones(1, time, dtype=torch.bool)
    channels = torch.zeros(1, model.config.hidden_size, dtype=torch.bool)
    plain = model(**batch).logits
    assert plain.shape[1] == time
    with hidden_spans(model, frames, channels):
        first = model(**batch).logits
        second = model(**{**batch, "input_values": 3 * torch.randn_like(batch["input_values"])}).logits
    assert torch.equal(first, second)
    assert not torch.equal(plain, first)
    assert torch.equal(model(**batch).logits, plain), "the hook must be gone"
    with hidden_spans(model, ~frames, ~channels):
        assert torch.isfinite(model(**batch).logits).all()


def test_masks_depend_on_seed_epoch_and_recording_alone(host):
    model, extractor = host
    collate = SpeechCollator(model, extractor, CtcConfig(mask_length=3))
    batch = collate(items())
    again = collate([{**item, "waveform": item["waveform"] * 2} for item in items()])
    assert torch.equal(batch["time_mask"], again["time_mask"])
    assert torch.equal(batch["channel_mask"], again["channel_mask"])
    later = collate([{**item, "draw": (1, item["draw"][1])} for item in items()])
    assert not torch.equal(batch["time_mask"], later["time_mask"])
    beyond = torch.arange(batch["time_mask"].shape[1])[None] >= batch["frames"][:, None]
    assert batch["time_mask"].any() and not batch["time_mask"][beyond].any()


def test_what_a_recording_is_heard_as_does_not_depend_on_the_batch(host):
    model, extractor = host
    waveforms = [item["waveform"] for item in items()]
    together = ctc_log_probs(model, extractor, waveforms)
    for waveform, log_probs in zip(waveforms, together, strict=True):
        alone = ctc_log_probs(model, extractor, [waveform])[0]
        assert alone.shape == log_probs.shape == (num_frames(model, len(waveform)), 7)
        torch.testing.assert_close(torch.tensor(alone), torch.tensor(log_probs), atol=1e-5, rtol=1e-4)


def test_loss_is_that_of_each_recording_alone():
    logits = torch.randn(2, 12, 5, requires_grad=True)
    labels, frames = torch.tensor([[1, 2, 2], [3, -100, -100]]), torch.tensor([12, 7])
    expected = []
    for row, ids in enumerate(([1, 2, 2], [3])):
        log_probs = logits[row, : frames[row]].log_softmax(-1)[:, None]
        loss = F.ctc_loss(log_probs, torch.tensor([ids]), frames[row][None], torch.tensor([len(ids)]))
        expected.append(loss)
    assert ctc_loss(logits, frames, labels, 0).item() == pytest.approx((sum(expected) / 2).item(), rel=1e-5)
    nothing = ctc_loss(logits, frames, torch.full((2, 1), -100), 0)
    assert torch.isfinite(nothing)
    impossible = ctc_loss(logits, torch.tensor([2, 1]), torch.ones(2, 6, dtype=torch.int64), 0)
    assert impossible == 0


def test_collapse():
    assert collapse([0, 1, 1, 0, 1, 2, -100], 0) == [1, 1, 2]
    assert collapse([-100, -100], 0) == []


@pytest.mark.parametrize("method", ["full", "lora"])
def test_transformers_and_peft_load_a_run(method, spoken, tiny_mamba, backbone, tmp_path):
    base = tiny_mamba if method == "full" else backbone("hubert")
    train(
        CtcConfig(
            data=spoken, backbone=base, output=str(tmp_path), method=method, epochs=1, tensorboard=False, device="cpu"
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    size = len(tokenizer.get_vocab())
    if method == "full":
        model = AutoModelForCTC.from_pretrained(tmp_path)
        assert model.config.pad_token_id == tokenizer.pad_token_id
    else:
        model = PeftModel.from_pretrained(load_ctc_model(base, size, tokenizer.pad_token_id), tmp_path)
    logits = model(torch.randn(1, 8000)).logits
    assert logits.shape[-1] == size
    assert tokenizer.decode(logits[0].argmax(-1)) is not None


def test_the_best_epoch_has_the_fewest_word_errors_then_characters(spoken, tiny_mamba, tmp_path):
    config = CtcConfig(
        data=spoken, backbone=tiny_mamba, output=str(tmp_path), epochs=12, learning_rate=3e-2, train_front=True,
        tensorboard=False, device="cpu", mask_prob=0.0,
    )  # fmt: skip
    curve = train(config)
    rows = curve.learning_curve
    best = min(rows, key=lambda row: (round(row["valid_wer"], 9), round(row["valid_cer"], 9)))
    chosen = rows[curve.best_epoch - 1]
    assert (chosen["valid_wer"], chosen["valid_cer"]) == (best["valid_wer"], best["valid_cer"])
    assert curve.scores["valid"]["wer"]["rate"] == pytest.approx(chosen["valid_wer"])


def test_one_process_takes_one_of_several_gpus(spoken, tiny_mamba, tmp_path, monkeypatch):
    pretend_two_gpus(monkeypatch)
    used = []
    monkeypatch.setattr(Trainer, "train", lambda trainer, **_: used.append(trainer.args.n_gpu) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(CtcConfig(data=spoken, backbone=tiny_mamba, output=str(tmp_path), device="cpu"))
    assert used == [1]
