"""Every behaviour with every method on every host; a new method or host adds a row and inherits all of them."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.conftest import (
    HOSTS,
    METHOD_OPTIONS,
    NOT_SILENT,
    OWN_METHODS,
    Host,
    logits,
    train_step,
    train_without_dropout,
    trainable,
)
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.integrations.peft import PeftAdapterMixin

from mambavox.adapters import METHODS, apply_method
from mambavox.errors import HostError

Method = tuple[str, dict[str, Any]]


def train(host: Host, method: Method, steps: int = 0, **kwargs: Any) -> nn.Module:
    model = apply_method(host.model(), *method, check=False, **kwargs)
    if steps:
        train_step(model, host.inputs(), steps)
    return model


def trained_host(host: Host, folder: Path, method: Method) -> PeftModel:
    """An adapter trained for two steps on a host that lies in a folder."""
    model = apply_method(host.auto_class.from_pretrained(folder), *method, check=False)
    train_step(model.eval(), host.inputs(), steps=2)
    return model


def test_a_new_adapter_is_the_host_bit_by_bit(host: Host, method: Method) -> None:
    expected = logits(host.model(), host.inputs())
    same = torch.equal(logits(train(host, method), host.inputs()), expected)
    assert same == (method[0] not in NOT_SILENT), "prefixes and prompts act from the start"


def test_every_trainable_tensor_soon_has_an_effect(host: Host, method: Method) -> None:
    inputs = host.inputs(torch.float64)
    model = apply_method(host.model(), *method, check=False).double()
    # A correction of the down projection gets its first gradient once the up projection has left zero.
    train_step(model, inputs, steps=2 if "low-rank-delta" in method[1].get("sharing", "") else 1)
    before = logits(model, inputs)
    tensors = trainable(model)
    assert tensors
    for name, parameter in tensors.items():
        if "k_proj.bitfit_bias" in name:
            continue  # what all keys have in common cancels in the softmax
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        assert not torch.equal(logits(model, inputs), before), f"{name} has no effect"
        with torch.no_grad():
            parameter.copy_(kept)
    assert torch.equal(logits(model, inputs), before)


def test_the_backbone_stays_frozen(host: Host, method: Method) -> None:
    model = train(host, method)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    train_step(model, host.inputs(), steps=2)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_saved_and_loaded_by_every_way(
    host: Host, method: Method, saved_hosts: dict[str, Path], tmp_path: Path
) -> None:
    base_folder, inputs = saved_hosts[host.name], host.inputs()
    model = trained_host(host, base_folder, method)
    expected = logits(model, inputs)
    base = host.auto_class.from_pretrained(base_folder)
    assert not torch.equal(expected, logits(base, inputs))
    model.save_pretrained(tmp_path)

    def fresh() -> nn.Module:
        return host.auto_class.from_pretrained(base_folder)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        loaded = PeftModel.from_pretrained(fresh(), tmp_path)
    assert torch.equal(logits(loaded, inputs), expected), "PeftModel.from_pretrained"
    assert not trainable(loaded)
    named = PeftModel.from_pretrained(fresh(), tmp_path, adapter_name="other", is_trainable=True)
    assert torch.equal(logits(named, inputs), expected), "another adapter name"
    assert len(trainable(named)) == len(trainable(model))
    lean = PeftModel.from_pretrained(fresh(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(lean, inputs), expected), "low_cpu_mem_usage"
    second = PeftModel.from_pretrained(fresh(), tmp_path)
    second.load_adapter(tmp_path, "second")
    second.set_adapter("second")
    assert torch.equal(logits(second, inputs), expected), "PeftModel.load_adapter"
    if method[0] in ("dora", "vera"):
        # Limits of transformers' own loading: it loses DoRA's magnitudes and refuses VeRA's shared matrices.
        return
    inside = fresh()
    PeftAdapterMixin.load_adapter(inside, str(tmp_path), adapter_name="inside")
    assert torch.equal(logits(inside, inputs), expected), "model.load_adapter of transformers"
    if host.name == "wav2vec2":
        # A limit of transformers, for LoRA too: its load_adapter for MMS languages shadows the one for PEFT.
        with pytest.raises(ValueError, match="adapter_attn_dim"):
            host.auto_class.from_pretrained(tmp_path)
        return
    # transformers finds the base model's folder in the adapter's configuration.
    auto = host.auto_class.from_pretrained(tmp_path)
    assert torch.equal(logits(auto, inputs), expected), "AutoModel.from_pretrained(adapter folder)"


def test_saved_under_another_name_it_loads_under_the_default_one(
    host: Host, own_method: Method, saved_hosts: dict[str, Path], tmp_path: Path
) -> None:
    base_folder, inputs = saved_hosts[host.name], host.inputs()
    model = trained_host(host, base_folder, own_method)
    model.save_pretrained(tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir() if path.is_file()}
    assert len(modes) == 1, "the weights are as readable as the configuration"
    renamed = PeftModel.from_pretrained(host.auto_class.from_pretrained(base_folder), tmp_path, adapter_name="french")
    renamed.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(
        host.auto_class.from_pretrained(base_folder), tmp_path / "again" / "french", adapter_name="default"
    )
    assert torch.equal(logits(again, inputs), logits(model, inputs))


def test_disabled_it_is_the_host(host: Host, method: Method) -> None:
    model = train(host, method, steps=2)
    expected, adapted = logits(host.model(), host.inputs()), logits(model, host.inputs())
    with model.disable_adapter():
        assert torch.equal(logits(model, host.inputs()), expected)
    assert torch.equal(logits(model, host.inputs()), adapted)
    assert not torch.equal(adapted, expected)


def test_two_adapters_are_switched_and_deleted(host: Host, own_method: Method) -> None:
    inputs = host.inputs()
    model = train(host, own_method, steps=2)
    first = logits(model, inputs)
    config = copy.deepcopy(model.peft_config["default"])
    model.add_adapter("second", config)
    assert torch.equal(logits(model, inputs), first), "adding one activates nothing"
    model.set_adapter("second")
    names = set(trainable(model))
    assert names and all(".second." in name for name in names)
    train_step(model, inputs, steps=3)
    second = logits(model, inputs)
    assert not torch.equal(second, first)
    model.set_adapter("default")
    assert torch.equal(logits(model, inputs), first), "two adapters share nothing"
    model.set_adapter("second")
    assert torch.equal(logits(model, inputs), second)
    model.delete_adapter("default")
    assert torch.equal(logits(model, inputs), second)
    assert not any(".default." in name for name, _ in model.named_parameters())


def test_unload_gives_the_host_back(host: Host, own_method: Method) -> None:
    fresh = host.model()
    model = train(host, own_method, steps=2, head=[])
    host_again = model.unload()
    assert torch.equal(logits(host_again, host.inputs()), logits(fresh, host.inputs()))
    assert [name for name, _ in host_again.named_modules()] == [name for name, _ in fresh.named_modules()]
    assert not any(m._forward_pre_hooks for m in host_again.modules())


def test_merging_is_refused(host: Host, own_method: Method) -> None:
    if own_method[0] == "bitfit":
        pytest.skip("biases can be merged; test_bitfit.py")
    model = train(host, own_method)
    with pytest.raises(HostError, match=r"cannot be merged.*unload\(\)"):
        model.merge_and_unload()
    with pytest.raises(HostError, match="cannot be merged"):
        model.merge_adapter()


def test_deepcopy_is_independent(host: Host, own_method: Method) -> None:
    model = train(host, own_method, steps=2)
    before = logits(model, host.inputs())
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, host.inputs()), before)
    train_step(twin, host.inputs())
    assert torch.equal(logits(model, host.inputs()), before)
    assert not torch.equal(logits(twin, host.inputs()), before)


def test_torch_save_of_the_whole_model(host: Host, own_method: Method) -> None:
    if host.name not in ("ast", "whisper"):
        pytest.skip("torch refuses to pickle the weight norm of this host's positional convolution")
    model = train(host, own_method, steps=2)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(logits(loaded, host.inputs()), logits(model, host.inputs()))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(host: Host, own_method: Method, use_reentrant: bool) -> None:
    if host.name == "wavlm" and use_reentrant:
        pytest.skip("transformers' WavLM hangs in reentrant checkpointing, with or without adapters")
    gradients = []
    for checkpointing in (False, True):
        model = train(host, own_method, steps=2)
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.get_base_model().enable_input_require_grads()
        train_without_dropout(model)
        model(**host.inputs()).logits.sum().backward()
        gradients.append({name: p.grad for name, p in trainable(model).items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[1][name], gradient)


def test_half_precision_host_keeps_a_float32_adapter(host: Host, own_method: Method) -> None:
    base = host.model().to(torch.bfloat16)
    inputs = host.inputs(torch.bfloat16)
    expected = logits(base, inputs)
    model = apply_method(base, *own_method, check=False)
    assert {p.dtype for name, p in trainable(model).items() if ".modules_to_save." not in name} == {torch.float32}
    if own_method[0] not in NOT_SILENT:
        assert torch.equal(logits(model, inputs), expected)
    train_step(model, inputs, steps=2)
    assert not torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("name", sorted(OWN_METHODS))
def test_an_adapter_takes_the_hosts_precision_where_peft_is_told_so(name: str) -> None:
    """``autocast_adapter_dtype=False``, as peft's own methods do."""
    options = next(options for method, options in METHOD_OPTIONS.values() if method == name)
    chosen, host = METHODS[name].config, next(host for host in HOSTS if host.name == "whisper")
    assert chosen is not None
    model = get_peft_model(host.model().to(torch.bfloat16), chosen(**options), autocast_adapter_dtype=False)
    assert {p.dtype for p in trainable(model).values()} == {torch.bfloat16}
    output = logits(model, host.inputs(torch.bfloat16))
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


def test_full_trains_everything(host: Host) -> None:
    model = apply_method(host.model(), "full")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == (["encoder.embed_positions.weight"] if host.name == "whisper" else [])
    assert METHODS["full"].options() == []
