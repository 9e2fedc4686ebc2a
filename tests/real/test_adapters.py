"""Adapters on a real Whisper: nothing changes at the start, caches change nothing, adapters are switched."""

from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mambavox.adapters import apply_method
from mambavox.adapters.methods import METHODS
from mambavox.asr.whisper import load_whisper
from mambavox.asr.whisper_language import add_language

pytestmark = pytest.mark.real

ASKED: dict[str, Any] = {"language": "en", "task": "transcribe", "max_new_tokens": 24, "do_sample": False}
SMALL: dict[str, Any] = {"bottleneck_dim": 16, "d_state": 4, "train_norms": False}
ADAPTERS = [name for name in METHODS if name not in ("linear", "full")]
# Their tokens are attended to from the first step, whatever they hold.
NOT_AT_FIRST = ("prompt", "prefix")


def strong(model: Any, seed: int = 0) -> Any:
    """Let what is trained change the output, though not beyond recognition."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.1 * noise.to(parameter.dtype) * max(float(parameter.data.std(correction=0)), 0.05)
    return model.eval()


@pytest.mark.parametrize("where", ["encoder", "decoder"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_identity_at_the_start(
    method: str, where: str, loaded: tuple[Any, Any], fresh: Callable[[], Any], features: Tensor
) -> None:
    if where == "decoder" and "where" not in METHODS[method].options():
        pytest.skip("the method has no place in a decoder of its own")
    options = {"where": where} if "where" in METHODS[method].options() else {}
    try:
        model = apply_method(fresh(), method, options).eval()
    except Exception as error:
        if where == "decoder" and "expected where='encoder'" in str(error):
            pytest.skip(str(error))
        raise
    ids = torch.tensor([[50258, 50259, 50359, 50363, 440, 1002]])
    with torch.no_grad():
        expected = loaded[0](input_features=features[:1], decoder_input_ids=ids).logits
        found = model(input_features=features[:1], decoder_input_ids=ids).logits
    assert any(parameter.requires_grad for parameter in model.parameters())
    if method in NOT_AT_FIRST:
        assert torch.isfinite(found).all()
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["mambadapter", "bottleneck", "lora"])
@pytest.mark.parametrize("beams", [1, 3])
def test_cached_equals_uncached_with_adapters_in_the_decoder(
    method: str, beams: int, fresh: Callable[[], Any], features: Tensor
) -> None:
    options = {"where": "both"} if method == "lora" else {**SMALL, "where": "both"}
    options = {name: value for name, value in options.items() if name in METHODS[method].options()}
    model = strong(apply_method(fresh(), method, options))
    with torch.inference_mode():
        cached, plain = (
            model.generate(input_features=features, use_cache=use_cache, num_beams=beams, **ASKED)
            for use_cache in (True, False)
        )
    assert torch.equal(cached, plain)
    assert cached.shape[1] > 8


def test_switching_adapters_and_rows_of_their_own(fresh: Callable[[], Any], features: Tensor, tmp_path: Path) -> None:
    model = apply_method(fresh(), "mambadapter", {**SMALL, "where": "both"})
    model.add_adapter("second", model.peft_config["default"])
    names = ["default", "second"]
    for seed, name in enumerate(names):
        model.set_adapter(name)
        strong(model, seed)
    alone = {}
    with torch.inference_mode():
        for name in names:
            model.set_adapter(name, inference_mode=True)
            alone[name] = model.generate(input_features=features, **ASKED)
        assert not torch.equal(alone["default"], alone["second"]), "the adapters differ"
        model.set_adapter("default", inference_mode=True)
        assert torch.equal(model.generate(input_features=features, **ASKED), alone["default"])
        rows = ["second", "default", "second"]
        mixed = model.generate(input_features=features, adapter_names=rows, **ASKED)
        with model.disable_adapter():
            plain = model.generate(input_features=features, **ASKED)
    for row, name in enumerate(rows):
        length = min(mixed.shape[1], alone[name].shape[1])
        assert torch.equal(mixed[row, :length], alone[name][row, :length])
    with torch.inference_mode():
        assert torch.equal(fresh().generate(input_features=features, **ASKED), plain)


@pytest.mark.parametrize("method", ["mambadapter", "lora"])
def test_bfloat16_hears_nearly_what_float32_hears(
    method: str, loaded: tuple[Any, Any], fresh: Callable[[], Any], features: Tensor
) -> None:
    options = {**SMALL, "where": "both"} if method == "mambadapter" else {}
    model = apply_method(fresh(), method, options).eval()
    with torch.inference_mode():
        expected = model.generate(input_features=features, **ASKED)
        model = model.bfloat16()
        found = model.generate(input_features=features.bfloat16(), **ASKED)
    for one, other in zip(found.tolist(), expected.tolist(), strict=True):
        assert SequenceMatcher(None, one, other).ratio() > 0.8, loaded[1].batch_decode([one, other])


def test_training_in_bfloat16_moves_every_trained_tensor(fresh: Callable[[], Any], features: Tensor) -> None:
    model = apply_method(fresh(), "mambadapter", {**SMALL, "where": "both"})
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    labels = torch.tensor([[50259, 50359, 50363, 440, 1002, 50257]]).repeat(3, 1)
    for _ in range(2):  # what begins behind a zero gets a gradient from the second step on
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_features=features, labels=labels).loss
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name: bool((p != before[name]).any()) for name, p in model.named_parameters() if p.requires_grad}
    assert all(moved.values()), [name for name, value in moved.items() if not value]


def test_a_new_language_is_learned_and_never_written(
    loaded: tuple[Any, Any], fresh: Callable[[], Any], features: Tensor, weights: str
) -> None:
    """The real tokenizer has a token behind the timestamps; the old tokens keep their numbers and their rows."""
    host, (_, processor) = fresh(), load_whisper(weights)
    tokenizer = processor.tokenizer
    size = len(tokenizer)
    index = add_language(host, tokenizer, "hsb", "pl")
    assert index is not None and len(tokenizer) == size + 1 and tokenizer.convert_tokens_to_ids("<|hsb|>") == index
    assert index >= size, "behind all that there were"
    rows = host.get_input_embeddings().weight
    torch.testing.assert_close(rows[index], rows[host.generation_config.lang_to_id["<|pl|>"]])
    torch.testing.assert_close(rows[:size], loaded[0].get_input_embeddings().weight[:size])
    assert host.proj_out.weight.data_ptr() == rows.data_ptr(), "still tied"
    assert add_language(host, tokenizer, "pl") is None

    model = apply_method(host, "bottleneck", {"bottleneck_dim": 16}, token_rows=[index]).eval()
    options = {**ASKED, "language": "<|hsb|>"}
    with torch.inference_mode():
        found = model.generate(input_features=features, return_timestamps=True, **options)
        polish = model.generate(input_features=features, return_timestamps=True, **{**options, "language": "pl"})
    assert not (found == index).any()
    assert torch.equal(found, polish), "it begins as the language that it is like"
    assert tokenizer.decode([index], skip_special_tokens=True) == ""
    segments = model.generate(input_features=features, return_timestamps=True, return_segments=True, **options)
    assert all(segment["end"] <= 30.0 for row in segments["segments"] for segment in row)
