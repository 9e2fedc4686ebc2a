"""The mixers of the Conformer adapter and of ConvPass, against torch's own modules."""

import pytest
import torch
import torch.nn.functional as F
from adapters.conftest import make_ast
from torch import nn

from mambavox.adapters import ConformerAdapterConfig, ConvPassConfig
from mambavox.adapters.branch import Branch, Projections
from mambavox.adapters.conformer import ConformerConvolution, RowNorm
from mambavox.adapters.convpass import FrameConvolution, GridConvolution
from mambavox.adapters.hosts import find_stacks
from mambavox.adapters.tokens import TokenGrid

LENGTHS = torch.tensor([7, 1, 4])


def shaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.double()


@pytest.mark.parametrize("kernel_size", [1, 2, 5, 8, 31])
def test_conformer_convolution_by_hand(kernel_size: int) -> None:
    mixer = shaken(ConformerConvolution(3, kernel_size))
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    conv = nn.Conv1d(3, 3, kernel_size, groups=3, padding="same").double()
    conv.load_state_dict(mixer.conv.state_dict())
    values, gates = x.chunk(2, dim=-1)
    convolved = conv((values * torch.sigmoid(gates)).transpose(1, 2))
    normed = F.group_norm(convolved, 1, mixer.norm.weight, mixer.norm.bias)
    torch.testing.assert_close(mixer(x), F.silu(normed).transpose(1, 2))


@pytest.mark.parametrize(
    "mixer",
    [ConformerConvolution(3, 5), ConformerConvolution(3, 4), FrameConvolution(6, 3), FrameConvolution(6, 5)],
    ids=["conformer", "conformer-even", "convpass", "convpass-wide"],
)
def test_padding_is_not_seen(mixer: nn.Module) -> None:
    mixer = shaken(mixer)
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    padded = x.clone()
    for row, length in enumerate(LENGTHS):
        padded[row, length:] = torch.nan
    output = mixer(padded, LENGTHS)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(output[row, :length], mixer(x[row : row + 1, :length])[0])


def test_a_convolution_without_lengths_sees_both_sides() -> None:
    for mixer in (ConformerConvolution(3, 3), FrameConvolution(6, 3)):
        x = torch.randn(1, 5, 6, requires_grad=True)
        shaken(mixer).float()(x)[0, 2].sum().backward()
        assert x.grad[0, 1].any() and x.grad[0, 3].any()


def test_row_norm_keeps_half_precision_and_a_single_frame_finite() -> None:
    norm = RowNorm(4)
    assert norm(torch.randn(2, 3, 4).bfloat16()).dtype == torch.bfloat16
    assert torch.isfinite(norm(torch.ones(1, 1, 4))).all()
    assert torch.isfinite(norm(torch.ones(1, 2, 4), torch.zeros(1, 2, 1, dtype=torch.bool))).all()


def test_grid_convolution_by_hand() -> None:
    """Bands and time steps are neighbours in the image; each special token is an image of its own."""
    mixer = shaken(GridConvolution(3, 3, TokenGrid(special_tokens=2, bands=4)))
    x = torch.randn(2, 2 + 4 * 5, 3, dtype=torch.float64)
    narrow = F.gelu(x)
    image = narrow[:, 2:].reshape(2, 4, 5, 3).permute(0, 3, 1, 2)
    convolved = mixer.conv(image).permute(0, 2, 3, 1).reshape(2, 20, 3)
    special = torch.stack([mixer.conv(narrow[:, i, :, None, None])[:, :, 0, 0] for i in range(2)], 1)
    torch.testing.assert_close(mixer(x), F.gelu(torch.cat([special, convolved], 1)))


@pytest.mark.parametrize("tokens", [TokenGrid(), TokenGrid(special_tokens=2, bands=4)])
def test_convpass_starts_as_the_identity_between_two_gelus(tokens: TokenGrid) -> None:
    mixer = ConvPassConfig(bottleneck_dim=3, kernel_size=5).make_mixer(tokens)
    x = torch.randn(2, 2 + 4 * 5, 3)
    torch.testing.assert_close(mixer(x), F.gelu(F.gelu(x)))


def test_the_conformer_adapter_applies_its_layer_norm() -> None:
    """The released code makes it and drops its output."""
    made = Branch(ConformerAdapterConfig(bottleneck_dim=4), find_stacks(make_ast())[0].sublayers()[1])
    projections = Projections(16, 8, 4)
    nn.init.normal_(projections.up.weight)
    x = torch.randn(2, 10, 16)
    torch.testing.assert_close(made(5 * x + 3, projections, None), made(x, projections, None), rtol=1e-3, atol=1e-3)
    by_hand = projections.up(made.mixer(projections.down(F.layer_norm(x, (16,)))))
    torch.testing.assert_close(made(x, projections, None), by_hand)
