"""What every block does alike."""

import pytest
import torch

from mambavox.nn import ExtBiMamba, Mamba, Mamba2

BLOCKS = {
    "Mamba": lambda: Mamba(12, d_state=4),
    "Mamba2": lambda: Mamba2(12, d_state=4, headdim=6),
    "Mamba2 without norm": lambda: Mamba2(12, d_state=4, headdim=6, rmsnorm=False),
    "ExtBiMamba": lambda: ExtBiMamba(12, d_state=4),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_nan_in_the_padding_reaches_neither_output_nor_gradient(block):
    block, lengths = block(), torch.tensor([0, 7, 20])
    frames = torch.randn(3, 20, 12)
    padding = torch.arange(20)[None, :, None] >= lengths[:, None, None]
    weights = torch.randn(3, 20, 12)

    def outputs_and_gradients(padded_with):
        leaf = frames.masked_fill(padding, padded_with).requires_grad_()
        output = block(leaf, lengths)
        return output, *torch.autograd.grad((output * weights).sum(), [leaf, *block.parameters()])

    for got, want in zip(outputs_and_gradients(torch.nan), outputs_and_gradients(0.0), strict=True):
        assert torch.equal(got, want)
