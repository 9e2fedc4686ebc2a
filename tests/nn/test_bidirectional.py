import pytest
import torch

from mambavox.nn import ExtBiMamba, Mamba, Mamba2


@pytest.mark.parametrize("block", [Mamba, Mamba2])
def test_reverse_is_the_block_on_rows_turned_inside_their_lengths(block):
    model = block(16) if block is Mamba else block(16, d_state=8, headdim=8)
    frames, lengths = torch.randn(3, 20, 16), [20, 1, 11]
    output = model(frames, torch.tensor(lengths), reverse=True)
    for row, length in enumerate(lengths):
        expected = model(frames[row : row + 1, :length].flip(1)).flip(1)
        torch.testing.assert_close(output[row : row + 1, :length], expected, rtol=1e-4, atol=1e-5)


class TestExtBiMamba:
    def test_is_the_sum_of_both_directions(self):
        model = ExtBiMamba(16, d_state=4)
        frames = torch.randn(2, 30, 16)
        expected = model.forward_mamba(frames) + model.backward_mamba(frames.flip(1)).flip(1)
        torch.testing.assert_close(model(frames), expected)

    def test_every_frame_depends_on_every_frame(self):
        model = ExtBiMamba(8, d_state=4)
        frames = torch.randn(1, 12, 8, requires_grad=True)
        for t in range(12):
            (gradient,) = torch.autograd.grad(model(frames)[:, t].sum(), frames)
            assert (gradient.abs().sum(dim=-1) > 0).all()

    def test_a_row_alone_gives_what_it_gives_in_a_batch(self):
        model = ExtBiMamba(8, d_state=4)
        frames, lengths = torch.randn(3, 15, 8), [15, 4, 9]
        output = model(frames, torch.tensor(lengths))
        for row, length in enumerate(lengths):
            torch.testing.assert_close(output[row : row + 1, :length], model(frames[row : row + 1, :length]))
