"""Traps of PEFT, transformers and the hosts, each of which has bitten someone."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.conftest import (
    FAMILY,
    HOSTS,
    METHOD_OPTIONS,
    NOT_SILENT,
    SMALL,
    Host,
    logits,
    make_hubert,
    make_wavlm,
    make_whisper_seq2seq,
    train_step,
    trainable,
)
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import HubertForCTC, PreTrainedModel

from mambavox.adapters import BottleneckConfig, MambAdapterConfig, apply_method, check_reaches_output
from mambavox.errors import ConfigError, HostError


def seq2seq(**options: Any) -> PeftModel:
    """A tiny Whisper with a trained adapter, and with all its dropout off."""
    torch.manual_seed(0)
    model = get_peft_model(make_whisper_seq2seq(), MambAdapterConfig(**SMALL, **options)).eval()
    features = torch.randn(2, 8, 40)
    train_step(model, {"input_features": features, "decoder_input_ids": torch.randint(3, 60, (2, 5))}, steps=3)
    return model


# Saving and loading a nested adapter, also under another name, is in test_behaviours (first pitfall).


def test_check_catches_what_wavlm_bypasses() -> None:
    """WavLM's attention reads the raw weights of its projections: stock LoRA there trains in vain."""
    model = get_peft_model(make_wavlm(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    with pytest.raises(HostError, match=r"8 of 8 trainable tensors.*lora_A.*WavLM"):
        check_reaches_output(model)


def test_lora_reaches_the_output_of_every_host(host: Host) -> None:
    names = set(trainable(apply_method(host.model(), "lora", {"r": 2})))
    part = "feed_forward" if host.name == "wavlm" else ".q_proj."
    assert any(part in name for name in names)


def test_whole_wavlm_attention_can_be_adapted() -> None:
    apply_method(make_wavlm(), "mambadapter", {**SMALL, "placement": "attention"}, check=True)


def test_the_check_is_not_fooled_by_layer_drop() -> None:
    """A dropped layer gives no gradient; the check looks at the graph without drops and puts everything back."""
    model = apply_method(make_hubert(layerdrop=1.0), "mambadapter", SMALL, check=False).train()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    check_reaches_output(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    model(**HOSTS[3].inputs()).logits.sum().backward()
    assert any(p.grad is None for p in trainable(model).values()), "with layer drop some tensors rest in a step"


@pytest.mark.parametrize("method", ["mambadapter", "lora"])
def test_new_ctc_vocabulary_is_saved(method: str, tmp_path: Path) -> None:
    """PEFT asks for embeddings when the vocabulary differs from the saved base model's; HuBERT has none."""
    HubertForCTC(make_hubert().config).save_pretrained(tmp_path / "base")

    def with_new_vocabulary() -> PreTrainedModel:
        torch.manual_seed(1)
        return HubertForCTC.from_pretrained(tmp_path / "base", vocab_size=7, ignore_mismatched_sizes=True)

    inputs = HOSTS[3].inputs()
    model = apply_method(with_new_vocabulary(), *METHOD_OPTIONS[method]).eval()
    train_step(model, inputs)
    expected = logits(model, inputs)
    assert expected.shape[-1] == 7
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(with_new_vocabulary(), tmp_path / "adapter")
    assert torch.equal(logits(loaded, inputs), expected)


def test_auto_peft_model_needs_no_task_type(saved_hosts: dict[str, Path], tmp_path: Path) -> None:
    host = HOSTS[0]
    model = apply_method(host.auto_class.from_pretrained(saved_hosts["ast"]), "mambadapter", SMALL, check=False)
    train_step(model.eval(), host.inputs())
    model.save_pretrained(tmp_path)
    # Without the import PEFT does not know the adapter's type, so the card says it, once, also when saved again.
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.count("import mambavox") == 1 and "library_name: peft" in card
    loaded = AutoPeftModel.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, host.inputs()), logits(model, host.inputs()))


@pytest.mark.parametrize("name", ["mamba", "adapter", "a", "layers"])
def test_awkward_adapter_names(name: str, saved_hosts: dict[str, Path], tmp_path: Path) -> None:
    host = HOSTS[0]
    base = host.auto_class.from_pretrained(saved_hosts["ast"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, MambAdapterConfig(**SMALL), adapter_name=name).eval()
    train_step(model, host.inputs(), steps=2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(host.auto_class.from_pretrained(saved_hosts["ast"]), tmp_path / name)
    assert torch.equal(logits(loaded, host.inputs()), logits(model, host.inputs()))


def test_adapter_names_that_are_parts_of_the_adapter_are_refused() -> None:
    with pytest.raises(ConfigError, match="adapter name 'mixer' is also the name of a part"):
        get_peft_model(HOSTS[0].model(), MambAdapterConfig(**SMALL), adapter_name="mixer")


def test_an_adapter_of_a_base_model_fits_the_model_with_a_head(host: Host, tmp_path: Path) -> None:
    """Sublayers are found anew, so nothing in the saved configuration ties it to one class's names."""
    model = get_peft_model(host.model(), MambAdapterConfig(**SMALL))
    model.save_pretrained(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    assert '"target_modules": null' in text
    assert "layers.0" not in text


@pytest.mark.parametrize("row", FAMILY)
def test_autocast_runs_and_trains(row: str) -> None:
    host = HOSTS[0]
    model = apply_method(host.model(), *METHOD_OPTIONS[row])
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(host.model(), host.inputs())
        assert torch.equal(logits(model, host.inputs()), expected) == (METHOD_OPTIONS[row][0] not in NOT_SILENT)
        train_step(model, host.inputs(), steps=2)
        assert torch.isfinite(logits(model, host.inputs())).all()
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}


def test_two_active_adapters_add_up_but_not_their_norms() -> None:
    host = HOSTS[0]
    model = get_peft_model(host.model(), MambAdapterConfig(**SMALL, train_norms=False))
    model.add_adapter("second", MambAdapterConfig(**SMALL, train_norms=False))
    for name in ("default", "second"):
        model.set_adapter(name)
        train_step(model, host.inputs(), steps=3)
    alone = [logits(model, host.inputs())]
    model.base_model.set_adapter(["default", "second"])
    assert not torch.equal(logits(model, host.inputs()), alone[0])
    both = get_peft_model(host.model(), MambAdapterConfig(**SMALL))
    both.add_adapter("second", MambAdapterConfig(**SMALL))
    both.base_model.set_adapter(["default", "second"])
    with pytest.raises(HostError, match=r"default, second are active together.*train_norms=False"):
        logits(both, host.inputs())


@pytest.mark.parametrize("first", ["lora", "mambadapter"])
def test_stacked_with_lora_in_either_order(first: str) -> None:
    host = HOSTS[1]
    configs = {
        "lora": LoraConfig(r=2, target_modules=["q_proj", "fc1", "fc2"]),
        "mambadapter": MambAdapterConfig(**SMALL, placement="ffn"),
    }
    model = host.model()
    expected = logits(model, host.inputs())
    for name in sorted(configs, key=lambda name: name != first):
        model.add_adapter(configs[name], adapter_name=f"my-{name}")
    model.set_adapter(["my-lora", "my-mambadapter"])
    assert torch.equal(logits(model, host.inputs()), expected)
    names = trainable(model)
    assert any("lora_A" in name for name in names) and any("mambadapter_branch" in name for name in names)
    check_reaches_output(model)
    train_step(model, host.inputs(), steps=2)
    stacked = logits(model, host.inputs())
    model.set_adapter("my-mambadapter")
    assert not torch.equal(logits(model, host.inputs()), stacked)
    model.disable_adapters()
    assert torch.equal(logits(model, host.inputs()), expected)


def test_two_methods_on_one_sublayer() -> None:
    host = HOSTS[1]
    model = host.model()
    expected = logits(model, host.inputs())
    model.add_adapter(MambAdapterConfig(**SMALL, train_norms=False), adapter_name="m")
    model.add_adapter(BottleneckConfig(bottleneck_dim=3, train_norms=False), adapter_name="b")
    model.set_adapter(["m", "b"])
    assert torch.equal(logits(model, host.inputs()), expected)
    check_reaches_output(model)
    assert {".m." in name for name in trainable(model)} == {True, False}


def test_frozen_host_outputs_stay_available(host: Host) -> None:
    """Recording of hidden states and attentions works through wrapped sublayers."""
    if host.name == "mamba-hubert":
        pytest.skip("its attention is fused and gives no weights")
    model = apply_method(host.model(), "mambadapter", {**SMALL, "placement": "both"}, check=False).eval()
    model.get_base_model().set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**host.inputs(), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2


def test_input_without_the_whole_layer_is_refused() -> None:
    model = apply_method(HOSTS[1].model(), "mambadapter", SMALL, check=False)
    layer = next(m for m in model.modules() if getattr(m, "taps_input", False))
    assert isinstance(layer, nn.Module)
    with pytest.raises(HostError, match="without its input"):
        layer(torch.zeros(1, 3, 32))
