import pytest
import torch
import torch.nn.functional as F

from mambavox.errors import ConfigError
from mambavox.ops import causal_conv1d


def draw(batch=2, time=30, d_inner=5, width=4):
    x, weight, bias = torch.randn(batch, time, d_inner), torch.randn(d_inner, width), torch.randn(d_inner)
    return (tensor.double().requires_grad_() for tensor in (x, weight, bias))


@pytest.mark.parametrize("width", [1, 2, 4, 8, 24])
def test_equals_a_padded_conv1d(width):
    x, weight, bias = draw(width=width)
    expected = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=width - 1, groups=5)[..., :30]
    torch.testing.assert_close(causal_conv1d(x, weight, bias), expected.transpose(1, 2))


def test_gradients():
    x, weight, bias = draw(time=6, width=3)
    initial_state = torch.randn(2, 5, 2).double().requires_grad_()
    lengths = torch.tensor([4, 6])

    def convolve(x, weight, bias, initial_state):
        return causal_conv1d(x, weight, bias, initial_state, return_final_state=True, lengths=lengths)

    assert torch.autograd.gradcheck(convolve, (x, weight, bias, initial_state))


@pytest.mark.parametrize("width", [1, 4, 24])
@pytest.mark.parametrize("cut", [0, 1, 11, 30])
def test_a_sequence_cut_anywhere_gives_the_uncut_result(width, cut):
    x, weight, bias = draw(width=width)
    expected, expected_state = causal_conv1d(x, weight, bias, return_final_state=True)
    first, state = causal_conv1d(x[:, :cut], weight, bias, return_final_state=True)
    second, state = causal_conv1d(x[:, cut:], weight, bias, state, return_final_state=True)
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected)
    torch.testing.assert_close(state, expected_state)


@pytest.mark.parametrize("width", [1, 4, 24])
def test_a_row_alone_gives_what_it_gives_in_a_batch(width):
    x, weight, bias = draw(width=width, batch=4)
    lengths = torch.tensor([0, 1, 13, 30])
    padded = x.detach().clone()
    for row, length in enumerate(lengths.tolist()):
        padded[row, length:] = float("nan")
    output, state = causal_conv1d(padded, weight, bias, return_final_state=True, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, alone_state = causal_conv1d(x[row : row + 1, :length], weight, bias, return_final_state=True)
        torch.testing.assert_close(output[row : row + 1, :length], alone)
        torch.testing.assert_close(state[row : row + 1], alone_state)
        assert (output[row, length:] == 0).all()


def test_wrong_shapes_are_named():
    x, weight, bias = draw()
    with pytest.raises(ConfigError, match="weight has shape"):
        causal_conv1d(x, weight[:3], bias)
    with pytest.raises(ConfigError, match="bias has shape"):
        causal_conv1d(x, weight, bias[:3])
    with pytest.raises(ConfigError, match=r"initial_state has shape .* \(2, 5, 3\)"):
        causal_conv1d(x, weight, bias, torch.zeros(2, 5, 4))
