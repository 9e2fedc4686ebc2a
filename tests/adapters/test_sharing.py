"""Who shares projections with whom."""

from typing import Any

import pytest
import torch
from adapters.conftest import SMALL, logits, make_hubert, make_whisper_seq2seq, train_step, trainable
from peft import PeftModel, get_peft_model

from mambavox.adapters import MambAdapterConfig
from mambavox.adapters.sublayer import SublayerAdapter
from mambavox.errors import ConfigError

INPUTS = {"input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(0))}


def deep(**options: Any) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(make_hubert(num_hidden_layers=5), MambAdapterConfig(**SMALL, **options)).eval()


def owners(model: PeftModel) -> dict[str, list[int]]:
    """The adapted sublayers by the owner of their projections, as ``layer.role``."""
    found: dict[str, list[str]] = {}
    for module in model.modules():
        if isinstance(module, SublayerAdapter):
            own, owner = module.sublayer, module.owners["default"].sublayer
            found.setdefault(f"{owner.layer}.{owner.role}", []).append(f"{own.layer}.{own.role}")
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sharing": "all"}, [[0, 1, 2, 3, 4]]),
        ({"sharing": "low-rank-delta:1"}, [[0, 1, 2, 3, 4]]),
        ({"sharing": "groups:1"}, [[0, 1, 2, 3, 4]]),
        ({"sharing": "groups:2"}, [[0, 1, 2], [3, 4]]),
        ({"sharing": "groups:3"}, [[0, 1], [2, 3], [4]]),
        ({"sharing": "groups:5"}, [[0], [1], [2], [3], [4]]),
        ({"sharing": "groups:2", "layers_to_transform": [0, 3, 4]}, [[0, 3], [4]]),
    ],
)
def test_layers_that_share(options: dict[str, Any], expected: list[list[int]]) -> None:
    found = owners(deep(**options))
    assert [[int(name.split(".")[0]) for name in names] for names in found.values()] == expected


def test_placements_share_among_themselves() -> None:
    found = owners(deep(sharing="placement", placement="both"))
    assert found == {f"0.{role}": [f"{layer}.{role}" for layer in range(5)] for role in ("attention", "ffn")}


def test_both_sublayers_of_a_layer_are_in_one_group() -> None:
    found = owners(deep(sharing="groups:2", placement="both"))
    assert [len(names) for names in found.values()] == [6, 4]


def test_groups_of_encoder_and_decoder_are_apart() -> None:
    model = get_peft_model(make_whisper_seq2seq(), MambAdapterConfig(**SMALL, sharing="groups:1", where="both"))
    assert sum(name.endswith("shared.default.up.weight") for name, _ in model.named_parameters()) == 2


def test_more_groups_than_layers() -> None:
    with pytest.raises(ConfigError, match=r"'groups:6' and encoder .* has 5 adapted layers; expected at most groups:5"):
        deep(sharing="groups:6")


def test_a_correction_starts_at_zero_and_acts_in_its_own_layer() -> None:
    model = deep(sharing="low-rank-delta:2")
    deltas = {name: p for name, p in trainable(model).items() if "_delta." in name}
    assert len(deltas) == 5 * 4
    assert all(not p.any() for name, p in deltas.items() if ".expand." in name)
    shared = deep(sharing="all")
    shared.load_state_dict({name: p for name, p in model.state_dict().items() if "_delta." not in name}, strict=True)
    train_step(shared, INPUTS, steps=2)
    for name, parameter in shared.state_dict().items():
        model.state_dict()[name].copy_(parameter)
    assert torch.equal(logits(model, INPUTS), logits(shared, INPUTS)), "with corrections at zero it is sharing='all'"
    train_step(model, INPUTS, steps=2)
    assert all(p.any() for p in deltas.values()), "gradients reach every correction"


def test_a_correction_by_hand() -> None:
    model = deep(sharing="low-rank-delta:2", mixer="none", gate="none", layers_to_transform=3)
    train_step(model, INPUTS, steps=3)
    layer = next(m for m in model.modules() if isinstance(m, SublayerAdapter))
    branch = layer.mambadapter_branch["default"]
    pair = layer.mambadapter_shared["default"]
    down = pair.down.weight + branch.down_delta.expand.weight @ branch.down_delta.reduce.weight
    up = pair.up.weight + branch.up_delta.expand.weight @ branch.up_delta.reduce.weight
    x = torch.randn(2, 3, 16)
    by_hand = (x @ down.T + pair.down.bias) @ up.T + pair.up.bias
    torch.testing.assert_close(branch(x, pair, None), by_hand)
