import copy
import io

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MambaModel,
)
from transformers.models.mamba.modeling_mamba import MambaMixer

from mambavox.errors import ConfigError
from mambavox.nn.speed_up import speed_up

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "state_size": 5,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    # A random model would end its sentence at once.
    "eos_token_id": None,
}


def language_model(family, **sizes):
    if family == "mamba":
        model = MambaForCausalLM(MambaConfig(**SIZES, **sizes))
    else:
        model = FalconMambaForCausalLM(FalconMambaConfig(**SIZES, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases and D begin as constants: an error in their use would not show.
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def twins(family="mamba", **sizes):
    """The model of transformers, and a copy sped up."""
    plain = language_model(family, **sizes)
    return plain, speed_up(copy.deepcopy(plain))


def tokens(batch=2, time=19):
    return torch.randint(1, 50, (batch, time))


def left_padding(time=19):
    """Attention mask of two rows, the first with seven frames of padding on the left."""
    mask = torch.ones(2, time, dtype=torch.long)
    mask[0, :7] = 0
    return mask


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


families = pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
sizes = pytest.mark.parametrize(
    "sizes",
    [{}, {"conv_kernel": 7}, {"use_bias": True, "use_conv_bias": False}, {"hidden_act": "gelu"}],
    ids=["default", "wide", "biases", "gelu"],
)


@families
class TestEqualsTransformers:
    @sizes
    @pytest.mark.parametrize("time", [1, 2, 19, 100])
    def test_in_logits(self, family, sizes, time):
        plain, fast = twins(family, **sizes)
        input_ids = tokens(time=time)
        with torch.no_grad():
            assert_close(fast(input_ids).logits, plain(input_ids).logits)

    @sizes
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_in_the_gradient_of_every_parameter(self, family, sizes, checkpointing):
        plain, fast = twins(family, **sizes)
        if checkpointing:
            fast.gradient_checkpointing_enable()
        input_ids = tokens()
        for model in (plain, fast):
            model.train()
            model(input_ids, labels=input_ids).loss.backward()
        theirs = dict(plain.named_parameters())
        for name, parameter in fast.named_parameters():
            assert theirs[name].grad.abs().max() > 0, name
            assert_close(parameter.grad, theirs[name].grad)

    def test_in_logits_and_gradients_of_a_left_padded_batch(self, family):
        plain, fast = twins(family, use_bias=True)
        input_ids, mask = tokens(), left_padding()
        logits = [model(input_ids, attention_mask=mask).logits for model in (fast, plain)]
        assert_close(*logits)
        gradients = [
            torch.autograd.grad(out.cos().sum(), list(model.parameters()))
            for out, model in zip(logits, (fast, plain), strict=True)
        ]
        assert_close(*gradients)

    @pytest.mark.parametrize("prompt", [1, 2, 19])
    @pytest.mark.parametrize("padded", [False, True])
    def test_in_the_tokens_generated(self, family, prompt, padded):
        plain, fast = twins(family)
        mask = left_padding()[:, -prompt:] if padded else torch.ones(2, prompt, dtype=torch.long)
        if padded:
            mask[:, -1] = 1
        prompts = {"input_ids": tokens(time=prompt), "attention_mask": mask}
        theirs = plain.generate(**prompts, max_new_tokens=12, do_sample=False)
        ours = fast.generate(**prompts, max_new_tokens=12, do_sample=False)
        assert ours.shape == (2, prompt + 12)
        assert torch.equal(ours, theirs)

    def test_in_beam_search(self, family):
        plain, fast = twins(family)
        prompts = tokens(time=6)
        theirs, ours = (model.generate(prompts, max_new_tokens=8, num_beams=3) for model in (plain, fast))
        assert torch.equal(ours, theirs)

    def test_in_the_cache(self, family):
        plain, fast = twins(family)
        input_ids = tokens()
        caches = []
        with torch.no_grad():
            for model in (fast, plain):
                cache = DynamicCache(config=model.config)
                model(input_ids[:, :-1], cache_params=cache, use_cache=True)
                model(input_ids[:, -1:], cache_params=cache, use_cache=True)
                caches.append(cache)
        for ours, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
            assert_close(ours.conv_states[0], theirs.conv_states[0])
            assert_close(ours.recurrent_states[0], theirs.recurrent_states[0])

    def test_in_bfloat16_it_is_no_further_from_float32(self, family):
        plain = language_model(family).bfloat16()
        fast = speed_up(copy.deepcopy(plain))
        exact = speed_up(copy.deepcopy(plain).float())
        input_ids = tokens(time=100)
        with torch.no_grad():
            ours, theirs, truth = (model(input_ids).logits for model in (fast, plain, exact))
        assert (ours - truth).norm() <= 1.1 * (theirs - truth).norm()


@families
class TestCache:
    @pytest.mark.parametrize("pieces", [[1] * 19, [18, 1], [2, 9, 1, 7], [10, 9]])
    def test_a_text_cut_anywhere_gives_the_uncut_logits(self, family, pieces):
        _, fast = twins(family)
        input_ids = tokens()
        cache = DynamicCache(config=fast.config)
        with torch.no_grad():
            whole = fast(input_ids, use_cache=False).logits
            parts = [fast(piece, cache_params=cache, use_cache=True).logits for piece in input_ids.split(pieces, 1)]
        assert_close(torch.cat(parts, dim=1), whole)

    def test_a_cache_that_was_reset_begins_anew(self, family):
        _, fast = twins(family)
        input_ids = tokens()
        cache = DynamicCache(config=fast.config)
        with torch.no_grad():
            first = fast(input_ids, cache_params=cache, use_cache=True).logits
            cache.reset()
            assert_close(fast(input_ids, cache_params=cache, use_cache=True).logits, first)

    def test_generation_with_and_without_cache_is_the_same(self, family):
        _, fast = twins(family)
        prompts = tokens(time=6)
        cached, uncached = (
            fast.generate(prompts, max_new_tokens=8, do_sample=False, use_cache=use_cache)
            for use_cache in (True, False)
        )
        assert torch.equal(cached, uncached)


class TestModelStaysWhatItIs:
    @families
    def test_same_object_same_state_dict_and_a_second_call_does_nothing(self, family):
        plain, fast = twins(family)
        before = list(fast.modules())
        assert speed_up(fast) is fast
        assert all(one is other for one, other in zip(before, fast.modules(), strict=True))
        assert list(fast.state_dict()) == list(plain.state_dict())
        input_ids = tokens()
        with torch.no_grad():
            assert_close(fast(input_ids).logits, plain(input_ids).logits)

    def test_other_models_are_left_alone(self):
        plain, fast = twins()
        assert {type(block.mixer) for block in plain.backbone.layers} == {MambaMixer}
        assert all(type(block.mixer) is not MambaMixer for block in fast.backbone.layers)
        assert type(language_model("mamba").backbone.layers[0].mixer) is MambaMixer

    @families
    def test_saved_and_loaded_as_before(self, family, tmp_path):
        plain, fast = twins(family)
        fast.save_pretrained(tmp_path)
        again = type(plain).from_pretrained(tmp_path).eval()
        input_ids = tokens()
        with torch.no_grad():
            assert_close(again(input_ids).logits, plain(input_ids).logits)
            assert_close(speed_up(again)(input_ids).logits, plain(input_ids).logits)

    def test_copied_and_pickled(self):
        _, fast = twins()
        buffer = io.BytesIO()
        torch.save(fast, buffer)
        buffer.seek(0)
        input_ids = tokens()
        with torch.no_grad():
            before = fast(input_ids).logits
            for twin in (copy.deepcopy(fast), torch.load(buffer, weights_only=False)):
                assert type(twin.backbone.layers[0].mixer) is type(fast.backbone.layers[0].mixer)
                torch.testing.assert_close(twin(input_ids).logits, before, rtol=0, atol=0)
                twin.backbone.layers[0].mixer.D.zero_()
                assert (twin(input_ids).logits - before).abs().max() > 1e-3
                torch.testing.assert_close(fast(input_ids).logits, before, rtol=0, atol=0)

    def test_the_bare_model_is_known_too(self):
        plain = MambaModel(MambaConfig(**SIZES)).eval()
        fast = speed_up(copy.deepcopy(plain))
        input_ids = tokens()
        with torch.no_grad():
            assert_close(fast(input_ids).last_hidden_state, plain(input_ids).last_hidden_state)


class TestAroundTheModel:
    @families
    @pytest.mark.parametrize("adapter_first", [True, False])
    def test_lora_on_the_projections_trains_as_before(self, family, adapter_first):
        plain, _ = twins(family)
        fast = copy.deepcopy(plain) if adapter_first else speed_up(copy.deepcopy(plain))
        lora = LoraConfig(target_modules=["in_proj", "x_proj"], init_lora_weights=False)
        plain, fast = get_peft_model(plain, lora), get_peft_model(fast, lora)
        fast.load_state_dict(plain.state_dict())
        fast = speed_up(fast) if adapter_first else fast
        input_ids = tokens()
        for model in (plain, fast):
            model(input_ids=input_ids, labels=input_ids).loss.backward()
        theirs = dict(plain.named_parameters())
        trained = [name for name, parameter in fast.named_parameters() if parameter.requires_grad]
        assert len(trained) == 8
        for name, parameter in fast.named_parameters():
            if name in trained:
                assert_close(parameter.grad, theirs[name].grad)

    @families
    def test_a_step_projection_that_may_only_be_called_gives_the_same(self, family):
        plain, fast = twins(family)
        # What transformers sets on a quantised model.
        fast.config._is_quantized = True
        input_ids = tokens()
        with torch.no_grad():
            assert_close(fast(input_ids).logits, plain(input_ids).logits)

    @pytest.mark.parametrize("offloaded_first", [True, False])
    def test_weights_offloaded_by_accelerate_are_fetched(self, offloaded_first, monkeypatch):
        model = language_model("mamba")
        input_ids = tokens()
        with torch.no_grad():
            expected = model(input_ids).logits
        if offloaded_first:
            speed_up(cpu_offload(model, torch.device("cpu")))
        else:
            cpu_offload(speed_up(model), torch.device("cpu"))

        def slow_path(*args, **kwargs):
            raise AssertionError("transformers' own forward was called")

        monkeypatch.setattr("transformers.models.mamba.modeling_mamba.mamba_selective_scan", slow_path)
        with torch.no_grad():
            assert_close(model(input_ids).logits, expected)


def test_a_model_without_mixers_is_refused():
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(ConfigError, match=r"model is a BertModel .* FalconMamba"):
        speed_up(BertModel(config))
