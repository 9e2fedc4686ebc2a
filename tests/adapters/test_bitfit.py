"""BitFit: which biases, whose copies, and putting them in the host's place."""

import pytest
import torch
from adapters.conftest import HOSTS, Host, logits, make_wavlm, make_whisper_seq2seq, train_step, trainable
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import ASTConfig, ASTModel

from mambavox.adapters import BitFitConfig, check_reaches_output
from mambavox.adapters.bitfit import BiasLayer
from mambavox.errors import ConfigError, HostError


def trained(host: Host, steps: int = 2) -> PeftModel:
    model = get_peft_model(host.model(), BitFitConfig()).eval()
    train_step(model, host.inputs(), steps)
    return model


def test_count_of_the_papers_row() -> None:
    """102K of arXiv 2312.03694: linear layers and norms of the encoder, the head left out."""
    with torch.device("meta"):
        model = ASTModel(ASTConfig())
    assert sum(p.numel() for p in trainable(get_peft_model(model, BitFitConfig())).values()) == 102_144


def test_every_bias_of_the_stack_and_no_other(host: Host) -> None:
    plain = host.model()
    model = get_peft_model(host.model(), BitFitConfig()).get_base_model()
    layers = {name for name, module in model.named_modules() if isinstance(module, BiasLayer)}
    inside = {
        name.removesuffix(".bias")
        for name, _ in plain.named_parameters()
        if name.endswith(".bias") and ".layers." in f".{name}"
    }
    norm = next(name for name in layers if "layers." not in name)
    assert layers == inside | {norm}
    assert norm.rsplit(".", 1)[-1] in ("layernorm", "layer_norm")


def test_whispers_keys_have_no_bias_to_train() -> None:
    names = trainable(get_peft_model(make_whisper_seq2seq(), BitFitConfig(where="both")))
    assert not any("k_proj" in name for name in names)
    assert {name.split(".")[3] for name in names} == {"encoder", "decoder"}


def test_choice_of_layers_and_modules() -> None:
    names = trainable(get_peft_model(HOSTS[0].model(), BitFitConfig(layers_to_transform=1, target_modules=["fc1"])))
    assert [name.split(".bitfit_")[0].split("layers.")[1] for name in names] == ["1.mlp.fc1"]
    with pytest.raises(HostError, match=r"no module with a bias fits where='decoder'.*the backbone has: encoder"):
        get_peft_model(HOSTS[0].model(), BitFitConfig(where="decoder"))
    with pytest.raises(ConfigError, match="where is 'middle'; expected one of encoder, decoder, both"):
        BitFitConfig(where="middle")  # type: ignore[arg-type]


def test_wavlms_attention_reads_the_adapters_biases() -> None:
    """It takes the bias of its projections without calling them."""
    model = get_peft_model(make_wavlm(), BitFitConfig(target_modules=["q_proj", "v_proj", "out_proj"]))
    check_reaches_output(model)
    model(**HOSTS[4].inputs()).logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable(model).values())


def test_merged_biases_are_the_hosts(host: Host) -> None:
    model = trained(host)
    expected, untouched = logits(model, host.inputs()), logits(host.model(), host.inputs())
    model.merge_adapter()
    assert torch.equal(logits(model, host.inputs()), expected)
    model.unmerge_adapter()
    assert torch.equal(logits(model, host.inputs()), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, host.inputs()), untouched)
    merged = model.merge_and_unload()
    assert torch.equal(logits(merged, host.inputs()), expected)
    assert not any(isinstance(module, BiasLayer) for module in merged.modules())


def test_a_broken_bias_is_not_merged_where_that_is_to_be_safe() -> None:
    model = trained(HOSTS[0])
    own = model.get_base_model().state_dict()
    next(iter(p for name, p in model.named_parameters() if p.requires_grad)).data[0] = float("nan")
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        model.merge_adapter(safe_merge=True)
    assert all(tensor.isfinite().all() for name, tensor in own.items() if "bitfit_" not in name)


def test_switched_off_a_merged_adapter_does_not_act() -> None:
    host = HOSTS[0]
    model = trained(host)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model, host.inputs()), logits(host.model(), host.inputs()))
    model.merge_adapter()
    assert torch.equal(logits(model.unload(), host.inputs()), logits(host.model(), host.inputs()))


def test_two_active_adapters_are_refused() -> None:
    model = get_peft_model(HOSTS[0].model(), BitFitConfig())
    model.add_adapter("second", BitFitConfig())
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(HostError, match="default, second are active together and each replaces the same bias"):
        logits(model, HOSTS[0].inputs())


@pytest.mark.parametrize("first", ["lora", "bitfit"])
def test_stacked_with_lora_in_either_order(first: str) -> None:
    host = HOSTS[1]
    configs = {"lora": LoraConfig(r=2, target_modules=["q_proj", "fc2"]), "bitfit": BitFitConfig()}
    model = host.model()
    expected = logits(model, host.inputs())
    for name in sorted(configs, key=lambda name: name != first):
        model.add_adapter(configs[name], adapter_name=f"my-{name}")
    model.set_adapter(["my-lora", "my-bitfit"])
    assert torch.equal(logits(model, host.inputs()), expected)
    check_reaches_output(model)
    train_step(model, host.inputs(), steps=2)
    both = logits(model, host.inputs())
    model.set_adapter("my-bitfit")
    assert not torch.equal(logits(model, host.inputs()), both)


def test_compiled_whole() -> None:
    host = HOSTS[0]
    model = trained(host)
    expected = logits(model, host.inputs())
    compiled: nn.Module = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, host.inputs()), expected)


def test_an_adapter_for_each_row() -> None:
    host = HOSTS[1]
    model = trained(host)
    model.add_adapter("second", BitFitConfig())
    model.set_adapter("second")
    train_step(model, host.inputs(), steps=4)
    second = logits(model, host.inputs())
    names = ["__base__", "second"]
    with torch.no_grad():
        rows = model(**host.inputs(), adapter_names=names).logits
    torch.testing.assert_close(rows[1], second[1])
    torch.testing.assert_close(rows[0], logits(host.model(), host.inputs())[0])
    wavlm = get_peft_model(make_wavlm(), BitFitConfig()).eval()
    with pytest.raises(HostError, match=r"without calling it.*set_adapter\(name\)"):
        wavlm(**HOSTS[4].inputs(), adapter_names=names[:1] * 2)
