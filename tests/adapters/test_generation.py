"""Cached generation through temporal adapters in a decoder gives what generation without a cache gives."""

from typing import Any

import pytest
import torch
from adapters.conftest import RESIDUAL, SMALL, make_whisper_seq2seq, trainable
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import EncoderDecoderCache

from mambavox.adapters import BottleneckConfig, ConformerAdapterConfig, MambAdapterConfig
from mambavox.adapters.hosts import attention_cache
from mambavox.errors import ConfigError, HostError

PAD, START, TIMESTAMP_BEGIN = 0, 1, 44
KINDS: dict[str, dict[str, Any]] = {
    "mamba-ffn": {"where": "decoder"},
    "mamba-attention-sequential": {"where": "decoder", "placement": "attention", "insertion": "sequential"},
    "mamba-both-everywhere": {"where": "both", "placement": "both", "sharing": "none", "gate": "channel"},
    "residual": {"where": "decoder", **RESIDUAL, "mixer_dim": 2, "sharing": "none"},
    "mamba2": {"where": "decoder", "mixer": "mamba2", "placement": "both"},
}
KEYWORD = "cache" if "cache" in make_whisper_seq2seq().forward.__code__.co_varnames else "past_key_values"


def strong(model: PeftModel, seed: int = 0) -> PeftModel:
    """Make adapters that change every result, and spread the vocabulary, so that tokens differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def talkative() -> PreTrainedModel:
    """A tiny Whisper with an output of its own; with tied embeddings a random one repeats its last token."""
    torch.manual_seed(0)
    host = make_whisper_seq2seq()
    host.proj_out = nn.Linear(host.config.d_model, host.config.vocab_size, bias=False)
    with torch.no_grad():
        for name, parameter in host.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.0 if "embed" in name or "proj_out" in name else 0.3)
    return host


def whisper(kind: str = "mamba-both-everywhere") -> PeftModel:
    host = talkative()
    return strong(get_peft_model(host, MambAdapterConfig(**SMALL, train_norms=False, **KINDS.get(kind, {}))))


def features(rows: int = 3, frames: int = 40) -> Tensor:
    return torch.randn(rows, 8, frames, generator=torch.Generator().manual_seed(2))


def both_ways(model: PeftModel, **options: Any) -> list[Any]:
    """Generation with and without a cache, with the scores of each step."""
    options = {"max_new_tokens": 12, "output_scores": True, "return_dict_in_generate": True, **options}
    return [model.generate(use_cache=use_cache, **options) for use_cache in (True, False)]


def check_equal(cached: Any, plain: Any) -> None:
    assert torch.equal(cached.sequences, plain.sequences)
    assert len(cached.scores) == len(plain.scores) > 3
    for step, expected in zip(cached.scores, plain.scores, strict=True):
        finite = torch.isfinite(expected)
        torch.testing.assert_close(step[finite], expected[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, "encoder"])
@pytest.mark.parametrize("beams", [1, 5])
def test_greedy_and_beam_search(kind: str, beams: int) -> None:
    model = whisper(kind)
    cached, plain = both_ways(model, input_features=features(), num_beams=beams)
    check_equal(cached, plain)
    with model.disable_adapter():
        host = model.generate(input_features=features(), num_beams=beams, max_new_tokens=12)
    assert not torch.equal(cached.sequences, host), "the adapter acts"
    assert len(set(cached.sequences.flatten().tolist())) > 5, "not one token again and again"


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_what_makes_it_equal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the state lost at each step the tokens, or at least the scores, are others."""
    model = whisper(kind)
    plain = both_ways(model, input_features=features())[1]

    def forgetful(*args: Any) -> Any:
        from mambavox.adapters.cache import DecodedState

        return DecodedState()

    monkeypatch.setattr("mambavox.adapters.sublayer.decoded_state", forgetful)
    lost = model.generate(
        input_features=features(), max_new_tokens=12, use_cache=True, output_scores=True, return_dict_in_generate=True
    )
    assert (lost.scores[2] - plain.scores[2]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("beams", [1, 5])
def test_prompts_of_different_lengths(attention: str, beams: int) -> None:
    """Left padding: a row of the batch gives what it gives alone, and what it gives without a cache."""
    model = whisper()
    model.get_base_model().set_attn_implementation(attention)
    prompts = [[START, 5, 6, 7, 8], [START, 9], [START, 10, 11]]
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 8}
    cached, plain = both_ways(
        model, input_features=features(), decoder_input_ids=ids, decoder_attention_mask=mask, **options
    )
    check_equal(cached, plain)
    for row, prompt in enumerate(prompts):
        alone = model.generate(
            input_features=features()[row : row + 1], decoder_input_ids=torch.tensor([prompt]), **options
        )
        together = cached.sequences[row, longest:]
        assert torch.equal(together[: alone.shape[1]], alone[0]), row
        assert together[alone.shape[1] :].eq(PAD).all()


def test_logits_with_left_padding_equal_those_alone() -> None:
    model = whisper().double()
    ids = torch.tensor([[PAD, PAD, START, 5, 6], [START, 7, 8, 9, 10]])
    mask = (ids != PAD).long()
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    sounds = features(2).double()
    with torch.no_grad():
        together = model(
            input_features=sounds, decoder_input_ids=ids, decoder_attention_mask=mask, decoder_position_ids=position
        ).logits
        alone = model(input_features=sounds[:1], decoder_input_ids=ids[:1, 2:]).logits
    torch.testing.assert_close(together[0, 2:], alone[0], rtol=1e-9, atol=1e-11)


def test_a_cache_fed_in_pieces_reordered_repeated_and_selected() -> None:
    model = whisper()
    ids = torch.randint(3, 60, (2, 9))
    with torch.no_grad():
        encoded = model.get_base_model().get_encoder()(features(2))
        whole = model(encoder_outputs=encoded, decoder_input_ids=ids).logits
        first = model(encoder_outputs=encoded, decoder_input_ids=ids[:, :4], use_cache=True)
        cache = attention_cache(dict(first))
        assert cache.get_seq_length() == 4
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 2, 1, 0]))
        cache.batch_select_indices(torch.tensor([0, 3]))
        rows = torch.tensor([1, 0])
        encoded.last_hidden_state = encoded.last_hidden_state[rows]
        for start, end in ((4, 7), (7, 8), (8, 9)):
            piece = model(
                encoder_outputs=encoded, decoder_input_ids=ids[rows, start:end], use_cache=True, **{KEYWORD: cache}
            )
            torch.testing.assert_close(piece.logits, whole[rows, start:end], rtol=1e-5, atol=1e-5)


def long_form(model: PeftModel, **options: Any) -> Any:
    """Three windows of sound, timestamps asked for, as Whisper transcribes what is longer than its window."""
    host = model.get_base_model()
    host.generation_config = GenerationConfig(
        no_timestamps_token_id=TIMESTAMP_BEGIN - 1,
        decoder_start_token_id=START,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=2,
        is_multilingual=False,
        max_length=24,
        prev_sot_token_id=3,
    )
    return model.generate(input_features=features(2, 120), return_timestamps=True, return_segments=True, **options)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 5}, {"condition_on_prev_tokens": True}], ids=["greedy", "beams", "conditioned"]
)
def test_long_form(options: dict[str, Any]) -> None:
    model = whisper()
    mask = torch.ones(2, 120, dtype=torch.long)
    mask[1, 90:] = 0
    cached, plain = (
        long_form(model, attention_mask=mask, max_new_tokens=8, use_cache=use_cache, **options)
        for use_cache in (True, False)
    )
    assert torch.equal(cached["sequences"], plain["sequences"])
    assert min(len(row) for row in cached["segments"]) >= 2, "several windows were decoded"


def test_an_adapter_for_each_row() -> None:
    options: dict[str, Any] = {**SMALL, "train_norms": False, **KINDS["mamba-both-everywhere"]}
    model = get_peft_model(talkative(), MambAdapterConfig(**options))
    model.add_adapter("second", MambAdapterConfig(**options))
    for number, name in enumerate(("default", "second")):
        model.set_adapter(name)
        strong(model, number)
    names = ["second", "default", "__base__"]
    mixed = model.generate(input_features=features(), adapter_names=names, max_new_tokens=8, do_sample=False)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                alone = model.generate(input_features=features(), max_new_tokens=8, do_sample=False)
        else:
            model.set_adapter(name)
            alone = model.generate(input_features=features(), max_new_tokens=8, do_sample=False)
        assert torch.equal(mixed[row], alone[row])


def test_two_adapters_at_once_keep_states_of_their_own() -> None:
    options: dict[str, Any] = {**SMALL, "where": "decoder", "train_norms": False}
    model = get_peft_model(talkative(), MambAdapterConfig(**options))
    model.add_adapter("second", MambAdapterConfig(**options))
    for number, name in enumerate(("default", "second")):
        model.set_adapter(name)
        strong(model, number)
    for stack in (False, True):
        model.base_model.combine_adapters(["default", "second"], weights=[0.7, 0.3], stack=stack)
        check_equal(*both_ways(model, input_features=features()))


def test_generations_one_after_another_begin_anew() -> None:
    model = whisper()
    once = model.generate(input_features=features(), max_new_tokens=8)
    model.generate(input_features=-features(2), max_new_tokens=5)
    assert torch.equal(model.generate(input_features=features(), max_new_tokens=8), once)


def test_gradient_checkpointing_and_a_bfloat16_host() -> None:
    model = whisper()
    model.get_base_model().bfloat16()
    options: dict[str, Any] = {"input_features": features().bfloat16(), "max_new_tokens": 6, "do_sample": False}
    assert model.generate(use_cache=True, **options).shape == model.generate(use_cache=False, **options).shape
    model = whisper()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model(input_features=features(), decoder_input_ids=torch.randint(3, 60, (3, 5))).logits.sum().backward()
    assert all(p.grad is not None for p in trainable(model).values())


# What cannot be made exact raises.


def test_a_static_cache_is_refused() -> None:
    with pytest.raises(HostError, match=r"StaticLayer.*leave out cache_implementation"):
        whisper().generate(input_features=features(), max_new_tokens=4, cache_implementation="static")
    config = make_whisper_seq2seq().config
    caches = EncoderDecoderCache(StaticCache(config, max_cache_len=9), StaticCache(config, max_cache_len=20))
    with pytest.raises(HostError, match="StaticLayer"), torch.no_grad():
        whisper()(input_features=features(), decoder_input_ids=torch.ones(3, 2).long(), **{KEYWORD: caches})


def test_assisted_generation_is_refused() -> None:
    assistant = make_whisper_seq2seq().eval()
    with pytest.raises((HostError, ValueError), match=r"cropped|tokens are to be removed"):
        whisper().generate(input_features=features(1), assistant_model=assistant, max_new_tokens=8)


def test_a_cropped_cache_is_refused() -> None:
    model = whisper()
    with torch.no_grad():
        step = model(input_features=features(2), decoder_input_ids=torch.randint(3, 60, (2, 4)), use_cache=True)
        cache = attention_cache(dict(step))
        assert not cache.is_croppable
        cache.crop(0)
        with pytest.raises(HostError, match="tokens are to be removed"):
            cache.crop(-1)


def test_a_cache_that_was_filled_without_the_adapter_is_refused() -> None:
    model = whisper()
    ids = torch.randint(3, 60, (2, 4))
    with torch.no_grad():
        with model.disable_adapter():
            step = model(input_features=features(2), decoder_input_ids=ids, use_cache=True)
        with pytest.raises(HostError, match=r"cache of 4 tokens in 2 rows, of which it has seen 0"):
            model(
                encoder_outputs=(step.encoder_last_hidden_state,),
                decoder_input_ids=ids[:, :1],
                use_cache=True,
                **{KEYWORD: attention_cache(dict(step))},
            )


def test_mixers_that_look_ahead_are_refused_in_a_decoder() -> None:
    for config, options in ((ConformerAdapterConfig, {}), (MambAdapterConfig, {"mixer": "bimamba"})):
        with pytest.raises(ConfigError, match="expected where='encoder', or a causal adapter"):
            config(where="decoder", **options)


def test_an_adapter_of_single_frames_leaves_any_cache_alone() -> None:
    model = strong(get_peft_model(make_whisper_seq2seq(), BottleneckConfig(where="decoder", placement="both")))
    options: dict[str, Any] = {"input_features": features(), "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(use_cache=False, **options)
    assert torch.equal(model.generate(cache_implementation="static", **options), expected)
    step = model(input_features=features(), decoder_input_ids=torch.ones(3, 2).long(), use_cache=True)
    cache = attention_cache(dict(step))
    assert isinstance(cache.self_attention_cache, DynamicCache) and cache.is_croppable
