import pytest
import torch

from mambavox.errors import ConfigError
from mambavox.nn import ExtBiMamba, InnBiMamba, Mamba, Mamba2


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


@pytest.mark.parametrize("block", [ExtBiMamba, InnBiMamba])
class TestBothDirections:
    def test_every_frame_depends_on_every_frame(self, block):
        model = block(8, d_state=4)
        frames = torch.randn(1, 12, 8, requires_grad=True)
        for t in range(12):
            (gradient,) = torch.autograd.grad(model(frames)[:, t].sum(), frames)
            assert (gradient.abs().sum(dim=-1) > 0).all()

    def test_a_row_alone_gives_what_it_gives_in_a_batch(self, block):
        model = block(8, d_state=4)
        frames, lengths = torch.randn(3, 15, 8), [15, 4, 9]
        frames[1, 4:], frames[2, 9:] = 1e3, -1e3
        output = model(frames, torch.tensor(lengths))
        for row, length in enumerate(lengths):
            torch.testing.assert_close(output[row : row + 1, :length], model(frames[row : row + 1, :length]))


class TestInnBiMamba:
    def test_is_two_mambas_that_share_their_projections(self):
        model = InnBiMamba(16, d_state=4, expand=3)
        shared = {
            name: tensor for name, tensor in model.state_dict().items() if "proj." in name and "_scan" not in name
        }
        blocks = []
        for scan in (model.forward_scan, model.backward_scan):
            block = Mamba(16, d_state=4, expand=3)
            block.load_state_dict({**shared, **scan.state_dict()})
            blocks.append(block)
        frames, lengths = torch.randn(2, 30, 16), torch.tensor([30, 11])
        expected = blocks[0](frames, lengths) + blocks[1](frames, lengths, reverse=True)
        torch.testing.assert_close(model(frames, lengths), expected)

    def test_has_one_pair_of_projections(self):
        names = [name for name, _ in InnBiMamba(16).named_parameters() if "in_proj" in name or "out_proj" in name]
        assert sorted(names) == ["in_proj.weight", "out_proj.weight"]

    def test_gradients_reach_every_parameter(self):
        model = InnBiMamba(8, d_state=4, bias=True)
        model(torch.randn(2, 9, 8)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_wrong_width_is_named(self):
        with pytest.raises(ConfigError, match="d_model=8"):
            InnBiMamba(8)(torch.zeros(1, 5, 9))
