"""Methods by name: options, heads, refusals, and training with transformers' Trainer."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.conftest import HOSTS, METHOD_OPTIONS, SMALL, Host, Noise, logits, make_whisper_seq2seq, trainable
from peft import PeftModel
from peft.tuners.ia3 import IA3Layer
from torch import Tensor, nn
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

from mambavox.adapters import METHODS, MambAdapterConfig, apply_method, check_reaches_output, no_weight_decay
from mambavox.errors import ConfigError, HostError


def test_every_method_says_what_it_is() -> None:
    own = "mambadapter mambadapter-residual bottleneck conformer convpass bitfit prefix prompt moa gc-lora"
    assert list(METHODS) == f"{own} lora dora vera adalora ia3 linear full".split()
    for name, method in METHODS.items():
        assert method.name == name and method.summary and 0 < method.learning_rate < 0.1
    assert {"bottleneck_dim", "placement", "d_state", "dropout"} <= set(METHODS["mambadapter"].options())
    assert {"r", "lora_alpha", "use_dora", "target_modules"} <= set(METHODS["lora"].options())
    assert not {"peft_type", "modules_to_save", "task_type"} & set(METHODS["bottleneck"].options())


def test_mambadapters_residual_form_is_a_set_of_its_options() -> None:
    adapted = apply_method(make_whisper_seq2seq(), "mambadapter-residual", {"d_state": 4}, check=False)
    config = adapted.peft_config["default"]
    assert isinstance(config, MambAdapterConfig)
    assert (config.residual, config.mixer_dim, config.sharing, config.d_state) == ("gelu", 16, "none", 4)
    assert MambAdapterConfig().residual == "none"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("mambadaptor", {}, "method is 'mambadaptor'.*did you mean 'mambadapter'"),
        ("mambadapter", {"bottleneck": 3}, "no option 'bottleneck'.*did you mean 'bottleneck_dim'"),
        ("bottleneck", {"d_state": 3}, "no option 'd_state'"),
        ("linear", {"r": 3}, "linear has no option 'r'; it takes none"),
        ("mambadapter", {"placement": "mlp"}, "placement is 'mlp'"),
    ],
)
def test_unknown_names(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_method(HOSTS[0].model(), method, options)


def test_every_method_reaches_the_output(host: Host, method: tuple) -> None:
    model = apply_method(host.model(), *method, check=True)
    head = {"classifier"} | ({"projector"} if host.name != "ast" else set())
    assert set(model.active_peft_config.modules_to_save) == head


@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
def test_pefts_methods_in_some_layers(method: str) -> None:
    for host in (HOSTS[0], HOSTS[1]):
        everywhere = {name for name in trainable(apply_method(host.model(), method)) if "lora_" in name}
        model = apply_method(host.model(), method, {"layers_to_transform": [1]})
        chosen = {name for name in trainable(model) if "lora_" in name}
        assert chosen == {name for name in everywhere if re.search(r"\.layers?\.1\.", name)} and chosen < everywhere


def test_lora_options_and_defaults() -> None:
    config = apply_method(HOSTS[0].model(), "lora").active_peft_config
    assert (config.r, config.lora_alpha) == (8, 16)
    config = apply_method(HOSTS[0].model(), "lora", {"r": 3, "target_modules": ["fc1"]}).active_peft_config
    assert (config.r, config.target_modules) == (3, {"fc1"})


def test_ia3_scales_what_goes_into_the_last_linear_layer(host: Host) -> None:
    model = apply_method(host.model(), "ia3", check=False)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, IA3Layer)}
    ends = {name.rsplit(".", 1)[-1] for name in layers}
    last = {"ast": "fc2", "whisper": "fc2"}.get(host.name, "output_dense")
    mixing = {"wavlm": set(), "mamba-hubert": {"k_proj", "v_proj", "in_proj"}}.get(host.name, {"k_proj", "v_proj"})
    assert ends == mixing | {last}
    assert all(module.is_feedforward == name.endswith(last) for name, module in layers.items())
    # Mamba-HuBERT's layers: one with a Mamba block, one with attention.
    assert len(layers) == (5 if host.name == "mamba-hubert" else 2 * len(ends))


def test_head_of_the_users_choice() -> None:
    model = apply_method(HOSTS[1].model(), "mambadapter", SMALL, head=["classifier"])
    assert not any("projector" in name for name in trainable(model))
    model = apply_method(HOSTS[1].model(), "mambadapter", SMALL, head=[])
    assert not any("classifier" in name for name in trainable(model))
    with pytest.raises(HostError, match=r"'clasifier', which WhisperForAudioClassification does not have.*classifier"):
        apply_method(HOSTS[1].model(), "mambadapter", SMALL, head=["clasifier"])


def test_linear_without_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="WhisperForConditionalGeneration has none"):
        apply_method(make_whisper_seq2seq(), "linear")


@pytest.mark.parametrize("method", METHODS)
def test_unknown_host_is_refused(method: str) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(HostError, match="not a known backbone"):
        apply_method(BertModel(config), method)


def test_seq2seq_is_checked_with_a_decoder_step() -> None:
    apply_method(make_whisper_seq2seq(), "mambadapter", {**SMALL, "where": "both", "placement": "both"}, check=True)


def test_check_takes_inputs_for_other_models() -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(HostError, match=r"2 of 4 trainable tensors.*unused\.weight, unused\.bias"):
        check_reaches_output(Probe(), {"x": torch.zeros(1, 2)})
    with pytest.raises(HostError, match=r"cannot make an input for Probe.*inputs="):
        check_reaches_output(Probe())
    with pytest.raises(HostError, match="nothing is trainable"):
        check_reaches_output(Probe().requires_grad_(False))


def test_weight_decay_leaves_these_alone(host: Host) -> None:
    model = apply_method(host.model(), "mambadapter", SMALL, check=False)
    spared = {name for name, p in trainable(model).items() if no_weight_decay(name, p)}
    decayed = set(trainable(model)) - spared
    for ending in (".A_log", ".D", ".scale", ".down.bias", ".up.bias", ".dt_proj.bias", ".conv1d.bias"):
        assert any(name.endswith(ending) for name in spared), ending
    assert all(name.endswith(".weight") for name in decayed)
    assert not any("norm" in name.rsplit(".", 3)[1] for name in decayed)
    assert any(name.endswith("in_proj.weight") for name in decayed)


@pytest.mark.parametrize("method", ["mambadapter", "full"])
def test_trainer(host: Host, method: str, saved_hosts: dict[str, Path], tmp_path: Path) -> None:
    """Checkpoints, evaluation and the best checkpoint loaded at the end."""
    options = METHOD_OPTIONS[method][1] if method in METHOD_OPTIONS else {}
    model = apply_method(host.auto_class.from_pretrained(saved_hosts[host.name]), method, options, check=False)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Noise(host), eval_dataset=Noise(host))
    before = {name: p.detach().clone() for name, p in trainable(model).items()}
    assert trainer.train().global_step == 2
    assert any(not torch.equal(p, before[name]) for name, p in trainable(model).items())
    if isinstance(model, PeftModel):
        best = trainer.state.best_model_checkpoint
        assert best is not None
        loaded = PeftModel.from_pretrained(host.auto_class.from_pretrained(saved_hosts[host.name]), best)
        assert torch.equal(logits(loaded, host.inputs()), logits(model, host.inputs()))


def test_config_fields_are_the_options() -> None:
    model = apply_method(HOSTS[0].model(), "mambadapter", {"bottleneck_dim": 3, "layers_to_transform": [1]})
    config = model.active_peft_config
    assert isinstance(config, MambAdapterConfig)
    assert (config.bottleneck_dim, config.layers_to_transform) == (3, [1])
