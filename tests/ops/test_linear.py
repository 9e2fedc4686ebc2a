"""A linear layer without gradients: the same results, and nothing that watches it is passed by."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mambavox.ops.linear import linear

MKLDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(1024, 768)


@pytest.mark.parametrize("shape", [(1024,), (3, 1024), (2, 5, 1024), (0, 1024)])
@pytest.mark.parametrize("bias", [True, False])
def test_results_are_the_layers(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = nn.Linear(1024, 768, bias=bias), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(linear(layer, x), layer(x), rtol=1e-5, atol=1e-5)
        view = torch.randn(1024, 7).T
        torch.testing.assert_close(linear(layer, view), layer(view), rtol=1e-5, atol=1e-5)


@MKLDNN
def test_a_large_plain_layer_is_not_called(layer: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    monkeypatch.setattr(nn.Linear, "forward", forward)
    with torch.no_grad():
        linear(layer, torch.randn(2, 1024))
        with pytest.raises(AssertionError):
            linear(nn.Linear(8, 8), torch.randn(2, 8))


def test_gradients_hooks_and_modes_are_kept(layer: nn.Linear) -> None:
    x = torch.randn(2, 1024)
    linear(layer, x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            linear(layer, x)
        assert counter.get_total_flops() == 2 * 2 * 1024 * 768
        assert linear(layer.double(), x.double()).dtype == torch.float64
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(layer, x).dtype == torch.bfloat16
        seen: list[nn.Module] = []
        layer.register_forward_hook(lambda module, args, output: seen.append(module))
        linear(layer, x)
    assert seen == [layer]
