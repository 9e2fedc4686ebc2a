"""What a branch is multiplied with."""

import pytest
import torch
from adapters.conftest import make_ast
from torch import Tensor

from mambavox.adapters import ConformerAdapterConfig, MambAdapterConfig
from mambavox.adapters.branch import Branch, Projections
from mambavox.adapters.config import AdapterConfig
from mambavox.adapters.hosts import find_stacks

X = torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(0))


def branch(config: AdapterConfig) -> tuple[Branch, Projections]:
    torch.manual_seed(0)
    made = Branch(config, find_stacks(make_ast())[0].sublayers()[1])
    projections = Projections(16, config.down_features(), config.bottleneck_dim)
    torch.nn.init.normal_(projections.up.weight)
    return made, projections


def ungated(config: AdapterConfig) -> Tensor:
    made, projections = branch(config)
    made.gate = made.scale = None
    return made(X, projections, None)


@pytest.mark.parametrize("gate", ["scalar", "channel", "token"])
@pytest.mark.parametrize("config", [MambAdapterConfig, ConformerAdapterConfig])
def test_every_gate_starts_at_scale_init(gate: str, config: type[AdapterConfig]) -> None:
    given = config(bottleneck_dim=4, gate=gate, scale_init=0.3)
    made, projections = branch(given)
    torch.testing.assert_close(made(X, projections, None), 0.3 * ungated(given))


def test_channels_and_tokens_have_their_own() -> None:
    made, projections = branch(MambAdapterConfig(bottleneck_dim=4, gate="channel"))
    plain = ungated(MambAdapterConfig(bottleneck_dim=4, gate="channel"))
    with torch.no_grad():
        made.scale.copy_(torch.arange(16.0))
    torch.testing.assert_close(made(X, projections, None), torch.arange(16.0) * plain)

    made, projections = branch(MambAdapterConfig(bottleneck_dim=4, gate="token"))
    with torch.no_grad():
        made.gate.weight.normal_()
    narrow = X @ projections.down.weight.T + projections.down.bias
    weights = 1 / (1 + torch.exp(-(narrow @ made.gate.weight.T + made.gate.bias)))
    assert weights.shape == (2, 10, 1) and weights.std() > 0
    plain = ungated(MambAdapterConfig(bottleneck_dim=4, gate="token"))
    torch.testing.assert_close(made(X, projections, None), weights * plain)


def test_without_a_gate_there_is_no_parameter() -> None:
    made, projections = branch(MambAdapterConfig(bottleneck_dim=4, gate="none"))
    assert not {"scale", "gate.weight"} & {name for name, _ in made.named_parameters()}
    torch.testing.assert_close(made(X, projections, None), ungated(MambAdapterConfig(bottleneck_dim=4, gate="none")))
