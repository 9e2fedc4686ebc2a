"""Prompts and prefixes: what they compute, what they leave as it was, and where they are refused."""

from typing import Any

import pytest
import torch
from adapters.conftest import (
    HOSTS,
    METHOD_OPTIONS,
    SMALL,
    Host,
    logits,
    make_hubert,
    make_wav2vec2,
    make_wavlm,
    make_whisper_seq2seq,
    train_step,
    trainable,
)
from adapters.test_lengths import MODELS, adapted, check_rows
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    ASTConfig,
    ASTModel,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperForCausalLM,
)

from mambavox.adapters import MambAdapterConfig, PrefixConfig, PromptConfig, check_reaches_output
from mambavox.adapters.prefix import PrefixAttention
from mambavox.adapters.virtual_tokens import extend_mask
from mambavox.errors import ConfigError, HostError

SHORTENING = {"add_adapter": True, "num_adapter_layers": 1, "output_hidden_size": 16}
ROWS = ("prefix", "prompt-deep", "prompt-shallow")
CONFIGS: dict[str, Any] = {
    "prefix": PrefixConfig(num_tokens=3),
    "prompt-deep": PromptConfig(num_tokens=3),
    "prompt-shallow": PromptConfig(num_tokens=3, depth="shallow"),
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PromptConfig(depth="shallow", num_tokens=300), 230_400),
        (PromptConfig(), 230_400),
        (PromptConfig(num_tokens=29), 267_264),
        (PrefixConfig(), 221_184),
        (PrefixConfig(num_tokens=14), 258_048),
    ],
)
def test_counts_of_the_papers_rows(config: Any, expected: int) -> None:
    with torch.device("meta"):
        model = ASTModel(ASTConfig())
    assert sum(p.numel() for p in trainable(get_peft_model(model, config)).values()) == expected


def test_new_tokens_lie_within_their_bound() -> None:
    tokens = torch.cat([p.detach().flatten() for p in trainable(ast_with(PromptConfig(num_tokens=40))).values()])
    bound = (6 / (768 + 16)) ** 0.5
    assert 0.9 * bound < tokens.abs().max() <= bound
    assert tokens.mean().abs() < 0.1 * bound


def ast_with(config: Any) -> nn.Module:
    return get_peft_model(HOSTS[0].model().base_model, config).eval()


def test_shallow_prompts_run_through_all_layers() -> None:
    model, host = ast_with(CONFIGS["prompt-shallow"]), HOSTS[0].model().base_model
    (tokens,) = trainable(model).values()
    inputs = HOSTS[0].inputs()
    with torch.no_grad():
        states = torch.cat([tokens.expand(2, -1, -1), host.embeddings(inputs["input_values"])], 1)
        for layer in host.layers:
            states = layer(states)
        torch.testing.assert_close(model(**inputs).last_hidden_state, host.layernorm(states[:, 3:]))


def test_deep_prompts_end_with_their_layer() -> None:
    model, host = ast_with(CONFIGS["prompt-deep"]), HOSTS[0].model().base_model
    inputs = HOSTS[0].inputs()
    with torch.no_grad():
        states = host.embeddings(inputs["input_values"])
        for layer, tokens in zip(host.layers, trainable(model).values(), strict=True):
            states = layer(torch.cat([tokens.expand(2, -1, -1), states], 1))[:, 3:]
        torch.testing.assert_close(model(**inputs).last_hidden_state, host.layernorm(states))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("host", HOSTS[:4], ids=lambda host: host.name)
def test_prefixes_are_further_keys_and_values(host: Host, implementation: str) -> None:
    """By the definition of attention, on the first layer of each host."""
    model = get_peft_model(host.model(), CONFIGS["prefix"]).eval().double()
    model.get_base_model().set_attn_implementation(implementation)
    layer = next(module for module in model.modules() if isinstance(module, PrefixAttention))
    base, prefix = layer.get_base_layer(), layer.prefix_tokens["default"]
    x = torch.randn(2, 7, 16, dtype=torch.float64)

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (2, 8)).transpose(1, 2)

    with torch.no_grad():
        got = layer(x, attention_mask=None)[0]
        # The projections have hooks that put the prefix in, so their weights are taken.
        query, key, value = (nn.functional.linear(x, p.weight, p.bias) for p in (base.q_proj, base.k_proj, base.v_proj))
        key = torch.cat([prefix.key.expand(2, -1, -1), key], 1)
        value = torch.cat([prefix.value.expand(2, -1, -1), value], 1)
        weights = (heads(query) @ heads(key).transpose(-1, -2) / 8**0.5).softmax(-1)
        out = getattr(base, "o_proj", None) or base.out_proj
        expected = out((weights @ heads(value)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("host", ["wav2vec2-pre-norm", "wav2vec2-post-norm", "hubert-pre-norm", "wavlm-pre-norm"])
@pytest.mark.parametrize("row", ROWS)
def test_row_alone_and_in_a_padded_batch(host: str, row: str) -> None:
    if row == "prefix" and "wavlm" in host:
        pytest.skip("refused there")
    check_rows(adapted(MODELS[host](), *METHOD_OPTIONS[row]))


@pytest.mark.parametrize("row", ROWS)
def test_every_kind_of_mask(row: str) -> None:
    model = adapted(make_hubert(), *METHOD_OPTIONS[row])
    model.get_base_model().set_attn_implementation("eager")
    check_rows(model)


def test_masks_with_room() -> None:
    valid = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert extend_mask(valid, 2).tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    wide = valid.bool()[:, None, None, :]
    scores = torch.zeros(2, 1, 3, 3).masked_fill(~wide, -1e9)
    assert extend_mask(wide, 2).tolist() == extend_mask(valid, 2).bool()[:, None, None].tolist()
    assert torch.equal(extend_mask(wide.expand(2, 1, 3, 3), 2), extend_mask(wide, 2).expand(2, 1, 5, 5))
    assert torch.equal(extend_mask(scores, 2) == 0, extend_mask(wide, 2).expand(2, 1, 5, 5))
    assert extend_mask(None, 2) is None
    with pytest.raises(HostError, match=r"a dict as its mask.*attn_implementation 'sdpa'"):
        extend_mask({}, 2)


@pytest.mark.parametrize("row", ROWS)
def test_what_is_recorded_has_the_hosts_lengths(host: Host, row: str) -> None:
    if host.name == "mamba-hubert" or (row == "prefix" and host.name == "wavlm"):
        pytest.skip("refused there")
    plain = host.model()
    model = get_peft_model(host.model(), CONFIGS[row]).eval()
    outputs = []
    for either in (plain, model):
        either.set_attn_implementation("eager")
        with torch.no_grad():
            outputs.append(either(**host.inputs(), output_hidden_states=True, output_attentions=True))
    for name in ("hidden_states", "attentions"):
        shapes, others = ([tensor.shape for tensor in output[name]] for output in outputs)
        assert shapes == others
    assert torch.equal(outputs[0].hidden_states[0], outputs[1].hidden_states[0]), "they enter behind the embeddings"
    assert (outputs[1].attentions[0].sum(-1) < 0.999).all(), "frames look at the tokens, which are not shown"


@pytest.mark.parametrize("row", ROWS)
def test_heads_see_as_many_frames_as_without(row: str) -> None:
    inputs = HOSTS[3].inputs()
    weighted = make_hubert(use_weighted_layer_sum=True)
    assert get_peft_model(weighted, CONFIGS[row]).eval()(**inputs).logits.shape == (2, 4)
    ctc = HubertForCTC(make_hubert().config)
    assert get_peft_model(ctc, CONFIGS[row]).eval()(**inputs).logits.shape == ctc(**inputs).logits.shape
    # Convolutions after the encoder shorten what it puts out.
    shortened = Wav2Vec2Model(Wav2Vec2Config(**{**make_wav2vec2().config.to_dict(), **SHORTENING}))
    shortened.set_attn_implementation("eager")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    before = shortened.eval()(**inputs, **wanted)
    after = get_peft_model(shortened, CONFIGS[row]).eval()(**inputs, **wanted)
    assert before.last_hidden_state.shape[1] < before.hidden_states[0].shape[1]
    for name in wanted:
        name = name.removeprefix("output_")
        assert [tensor.shape for tensor in after[name]] == [tensor.shape for tensor in before[name]]


@pytest.mark.parametrize("row", ROWS)
def test_whisper_generates(row: str) -> None:
    model = get_peft_model(make_whisper_seq2seq(), CONFIGS[row]).eval()
    check_reaches_output(model)
    assert model.generate(input_features=torch.randn(1, 8, 40), max_new_tokens=4).shape[0] == 1


def test_what_is_refused() -> None:
    with pytest.raises(HostError, match=r"cannot be put into WavLM's attention.*PromptConfig"):
        get_peft_model(make_wavlm(), PrefixConfig())
    decoder = WhisperForCausalLM(
        WhisperConfig(
            d_model=16,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            vocab_size=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with pytest.raises(HostError, match="no encoder for virtual tokens; the backbone has: decoder"):
        get_peft_model(decoder, PromptConfig())
    with pytest.raises(ConfigError, match="depth is 'flat'; expected one of shallow, deep"):
        PromptConfig(depth="flat")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_tokens is 0; expected a whole number of at least 1"):
        PrefixConfig(num_tokens=0)


@pytest.mark.parametrize("row", ROWS)
def test_one_prompt_or_prefix_at_a_time(row: str) -> None:
    model = get_peft_model(HOSTS[0].model(), CONFIGS[row]).eval()
    with pytest.raises(ConfigError, match="the same for all rows of a batch"):
        model(**HOSTS[0].inputs(), adapter_names=["default", "__base__"])
    model.add_adapter("second", CONFIGS[row])
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(HostError, match="default, second are active together and each brings virtual tokens"):
        logits(model, HOSTS[0].inputs())


def test_adapters_of_different_lengths_are_switched() -> None:
    host = HOSTS[3]
    model = get_peft_model(host.model(), PromptConfig(num_tokens=2, depth="shallow")).eval()
    first = logits(model, host.inputs())
    model.add_adapter("deep", PromptConfig(num_tokens=5))
    model.set_adapter("deep")
    assert not torch.equal(logits(model, host.inputs()), first)
    model.set_adapter("default")
    assert torch.equal(logits(model, host.inputs()), first)


def test_shallow_prompts_and_layer_drop() -> None:
    """The models' own default skips layers in training, and a skipped layer could lose the tokens."""
    inputs = HOSTS[3].inputs()
    model = get_peft_model(make_hubert(layerdrop=0.5), CONFIGS["prompt-shallow"]).train()
    with pytest.raises(HostError, match=r"skips each layer with probability 0.5.*depth='deep'"):
        model(**inputs)
    with model.disable_adapter():
        model(**inputs)
    model.eval()(**inputs)
    deep = get_peft_model(make_hubert(layerdrop=0.5), CONFIGS["prompt-deep"]).train()
    for _ in range(8):
        assert deep.get_base_model().hubert(**inputs).last_hidden_state.shape[1] == 18


@pytest.mark.parametrize("row", ROWS)
def test_on_top_of_other_adapters(row: str) -> None:
    host = HOSTS[1]
    model = host.model()
    model.add_adapter(LoraConfig(r=2, target_modules=["k_proj", "v_proj", "fc2"]), adapter_name="my-lora")
    model.add_adapter(MambAdapterConfig(**SMALL, train_norms=False), adapter_name="my-mamba")
    model.add_adapter(CONFIGS[row], adapter_name="my-tokens")
    model.set_adapter(["my-lora", "my-mamba", "my-tokens"])
    check_reaches_output(model)
    train_step(model, host.inputs(), steps=2)
    together = logits(model, host.inputs())
    model.set_adapter("my-tokens")
    assert not torch.equal(logits(model, host.inputs()), together)
    model.disable_adapters()
    assert torch.equal(logits(model, host.inputs()), logits(host.model(), host.inputs()))
