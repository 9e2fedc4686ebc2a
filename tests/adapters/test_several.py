"""Several adapters at once: mixed, stacked, and one for each row of a batch."""

import copy
from typing import Any

import pytest
import torch
from adapters.conftest import HOSTS, SMALL, Host, logits, make_hubert, make_whisper_seq2seq, train_step, trainable
from peft import PeftModel, get_peft_model
from torch import Tensor

from mambavox.adapters import AdapterConfig, BottleneckConfig, ConformerAdapterConfig, MambAdapterConfig
from mambavox.adapters.sublayer import SublayerAdapter
from mambavox.errors import ConfigError

AST = HOSTS[0]


def with_two(host: Host, make: Any = MambAdapterConfig, **options: Any) -> PeftModel:
    """A host with two trained adapters, ``default`` and ``second``, the first of them active."""
    config = make(**options)
    model = get_peft_model(host.model(), config).eval()
    model.add_adapter("second", copy.deepcopy(config))
    for name, steps in (("second", 3), ("default", 2)):
        model.set_adapter(name)
        train_step(model, host.inputs(), steps)
    return model


def layer_parts(model: PeftModel) -> tuple[SublayerAdapter, Tensor, Tensor, dict[str, Any]]:
    """The first adapted sublayer, an input, what the host's sublayer makes of it, and each adapter's branch alone."""
    layer = next(module for module in model.modules() if isinstance(module, SublayerAdapter))
    x = torch.randn(2, 10, 16)

    def alone(name: str) -> Any:
        return lambda source: layer.mambadapter_branch[name](source, layer.owners[name].mambadapter_shared[name], None)

    return layer, x, layer.base_layer(x), {name: alone(name) for name in ("default", "second")}


def test_mixed_with_weights() -> None:
    model = with_two(AST, **SMALL, train_norms=False)
    layer, x, frozen, alone = layer_parts(model)
    model.combine_adapters(["default", "second"], weights=[0.25, -2.0])
    torch.testing.assert_close(layer(x), frozen + 0.25 * alone["default"](x) - 2 * alone["second"](x))
    model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(layer(x), frozen + alone["default"](x) + alone["second"](x))


@pytest.mark.parametrize("insertion", ["parallel", "sequential"])
def test_stacked(insertion: str) -> None:
    model = with_two(AST, **SMALL, train_norms=False, insertion=insertion)
    layer, x, frozen, alone = layer_parts(model)
    source = x if insertion == "parallel" else frozen
    with torch.no_grad():
        for name in ("default", "second"):
            layer.mambadapter_branch[name].scale.fill_(1.0)
            for projection in layer.owners[name].mambadapter_shared[name].children():
                projection.weight.normal_()
    model.combine_adapters(["second", "default"], weights=[1.0, 0.5], stack=True)
    first = alone["second"](source)
    second = 0.5 * alone["default"](source + first)
    assert not torch.allclose(second, 0.5 * alone["default"](source), rtol=0.1)
    torch.testing.assert_close(layer(x), frozen + first + second)
    model.combine_adapters(["default", "second"], stack=True)
    swapped = alone["default"](source)
    torch.testing.assert_close(layer(x), frozen + swapped + alone["second"](source + swapped))


def test_set_adapter_ends_a_combination_and_a_copy_keeps_it() -> None:
    model = with_two(AST, **SMALL, train_norms=False)
    alone = logits(model, AST.inputs())
    model.combine_adapters(["default", "second"], weights=[0.5, 0.5], stack=True)
    combined = logits(model, AST.inputs())
    assert not torch.allclose(combined, alone)
    assert torch.equal(logits(copy.deepcopy(model), AST.inputs()), combined)
    model.set_adapter("default")
    assert torch.equal(logits(model, AST.inputs()), alone)
    with model.disable_adapter():
        assert torch.equal(logits(model, AST.inputs()), logits(AST.model(), AST.inputs()))


def test_a_weight_of_zero_and_one_is_the_one() -> None:
    model = with_two(AST, **SMALL, train_norms=False)
    alone = logits(model, AST.inputs())
    model.combine_adapters(["default", "second"], weights=[1.0, 0.0])
    torch.testing.assert_close(logits(model, AST.inputs()), alone)


def test_bad_combinations() -> None:
    model = with_two(AST, **SMALL, train_norms=False)
    for names, weights, message in (
        (["default", "third"], None, "no adapter 'third'; expected default, second"),
        ([], None, "expected at least one name"),
        (["default", "default"], None, "each name once"),
        (["default", "second"], [1.0], "1 weights are given for 2 adapters"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.combine_adapters(names, weights=weights)
    model = with_two(AST, **SMALL, train_norms=False, modules_to_save=["classifier"])
    with pytest.raises(ConfigError, match="default, second each bring modules_to_save"):
        model.combine_adapters(["default", "second"])


CASES: dict[str, tuple[int, type[AdapterConfig], dict[str, Any]]] = {
    "ast-head-norms-shared": (0, MambAdapterConfig, {**SMALL, "placement": "both", "modules_to_save": ["classifier"]}),
    "whisper-bottleneck": (1, BottleneckConfig, {"bottleneck_dim": 3}),
    "hubert-conformer": (3, ConformerAdapterConfig, {"bottleneck_dim": 3, "modules_to_save": ["projector"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_for_each_row(case: str) -> None:
    number, config, options = CASES[case]
    host = HOSTS[number]
    model = with_two(host, config, **options)
    inputs = {name: torch.cat([value, value.flip(-1)]) for name, value in host.inputs().items()}
    expected = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        expected[name] = logits(model, inputs)
    with model.disable_adapter():
        expected["__base__"] = logits(model, inputs)
    model.set_adapter("default")
    names = ["second", "__base__", "default", "second"]
    together = logits(model, {**inputs, "adapter_names": names})
    for row, name in enumerate(names):
        torch.testing.assert_close(together[row], expected[name][row])
        others = [expected[other][row] for other in expected if other != name]
        assert not any(torch.allclose(together[row], other, rtol=1e-4) for other in others)
    assert torch.equal(logits(model, inputs), expected["default"]), "afterwards the active adapter acts again"


def test_rows_of_different_lengths_have_their_own_adapters() -> None:
    """Adapters that look both ways, in a padded batch."""
    torch.manual_seed(0)
    model = get_peft_model(make_hubert().base_model, ConformerAdapterConfig(bottleneck_dim=3)).eval()
    model.add_adapter("second", ConformerAdapterConfig(bottleneck_dim=3))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conformer_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    waveforms, mask = torch.randn(3, 640), torch.ones(3, 640, dtype=torch.int64)
    mask[1, 400:] = 0
    with torch.no_grad():
        together = model(waveforms, attention_mask=mask, adapter_names=["default", "second", "second"])
        model.set_adapter("second")
        alone = model(waveforms[1:2, :400]).last_hidden_state
    torch.testing.assert_close(together.last_hidden_state[1:2, : alone.shape[1]], alone, rtol=1e-4, atol=1e-5)


def test_bad_rows() -> None:
    model = with_two(AST, **SMALL)
    inputs = AST.inputs()
    with pytest.raises(ConfigError, match="no adapter 'third'; expected default, second"):
        model(**inputs, adapter_names=["default", "third"])
    with pytest.raises(ConfigError, match="adapter_names has 3 names and the batch 2 rows"):
        model(**inputs, adapter_names=["default"] * 3)
    with pytest.raises(ConfigError, match="adapter_names has 1 names and the batch 2 rows"):
        model(**inputs, adapter_names=["__base__"])
    with pytest.raises(ConfigError, match=r"training mode; expected a model in evaluation mode, model\.eval\(\)"):
        model.train()(**inputs, adapter_names=["default", "second"])
    assert all(module.row_adapters is None for module in model.modules() if isinstance(module, SublayerAdapter))


def test_generation_with_an_adapter_for_each_row() -> None:
    torch.manual_seed(0)
    model = get_peft_model(make_whisper_seq2seq(), MambAdapterConfig(**SMALL)).eval()
    features = torch.randn(2, 8, 40)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter))
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    adapted = model.generate(input_features=features, **options)
    with model.disable_adapter():
        plain = model.generate(input_features=features, **options)
    mixed = model.generate(input_features=features, adapter_names=["default", "__base__"], **options)
    assert mixed[0].tolist() == adapted[0].tolist() != plain[0].tolist()
    assert mixed[1].tolist() == plain[1].tolist()
