import copy

import pytest
import torch
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from mambavox.errors import ConfigError
from mambavox.nn import Mamba


def twin(d_model=12, d_state=8, d_conv=4, expand=2):
    """Our block and transformers' mixer with the same weights."""
    config = MambaConfig(hidden_size=d_model, state_size=d_state, conv_kernel=d_conv, expand=expand, use_bias=False)
    mixer = MambaMixer(config, layer_idx=0).eval()
    block = Mamba(d_model, d_state, d_conv, expand)
    block.load_state_dict(mixer.state_dict())
    return block, mixer


@pytest.mark.parametrize("sizes", [(12, 8, 24, 2), (32, 16, 4, 2), (24, 4, 8, 3)])
def test_equals_transformers_mixer_in_output_and_gradients(sizes):
    block, mixer = twin(*sizes)
    hidden_states = torch.randn(2, 60, sizes[0], requires_grad=True)
    weights = torch.randn(2, 60, sizes[0])
    ours = torch.autograd.grad((block(hidden_states) * weights).sum(), [hidden_states, *block.parameters()])
    named = dict(mixer.named_parameters())
    theirs = torch.autograd.grad(
        (mixer(hidden_states) * weights).sum(),
        [hidden_states, *(named[name] for name, _ in block.named_parameters())],
    )
    torch.testing.assert_close(block(hidden_states), mixer(hidden_states), rtol=1e-5, atol=1e-5)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_state_dict_has_the_names_and_shapes_of_mamba_ssm():
    # Read off state-spaces/mamba, mamba_ssm/modules/mamba_simple.py: d_model 32, d_state 8, d_conv 4, expand 2.
    shapes = {name: tuple(tensor.shape) for name, tensor in Mamba(32, 8, 4, 2).state_dict().items()}
    assert shapes == {
        "A_log": (64, 8),
        "D": (64,),
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (2 + 16, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64),
    }


def test_initialisation_of_the_scan():
    block = Mamba(64, d_state=4, dt_min=0.001, dt_max=0.1)
    torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 5).expand(128, 4))
    step = torch.nn.functional.softplus(block.dt_proj.bias)
    assert step.min() >= 0.001 - 1e-6
    assert step.max() <= 0.1 + 1e-6
    assert step.log().std() > 1.0  # log-uniform over two decades: 1.33
    assert (block.D == 1).all()


class TestStreaming:
    @pytest.mark.parametrize("d_conv", [1, 4, 24])
    def test_step_by_step_equals_forward(self, d_conv):
        block = Mamba(12, 8, d_conv).double()
        hidden_states = torch.randn(2, 30, 12).double()
        expected, expected_state = block(hidden_states, return_state=True)
        state, outputs = block.init_state(2), []
        for frame in hidden_states.unbind(dim=1):
            output, state = block.step(frame, state)
            outputs.append(output)
        torch.testing.assert_close(torch.stack(outputs, dim=1), expected)
        torch.testing.assert_close(state.ssm, expected_state.ssm)
        torch.testing.assert_close(state.conv, expected_state.conv)

    def test_streams_can_be_reordered_between_pieces(self):
        block = Mamba(12, 8).double()
        hidden_states = torch.randn(3, 20, 12).double()
        rows = torch.tensor([2, 0])
        _, state = block(hidden_states[:, :11], return_state=True)
        output = block(hidden_states[rows, 11:], state=state.reorder(rows))
        torch.testing.assert_close(output, block(hidden_states)[rows, 11:])

    def test_gradients_flow_through_the_carried_state(self):
        block = Mamba(12, 8)
        hidden_states = torch.randn(1, 10, 12, requires_grad=True)
        _, state = block(hidden_states[:, :5], return_state=True)
        output = block(hidden_states[:, 5:], state=state)
        assert torch.autograd.grad(output.sum(), hidden_states, retain_graph=True)[0][:, :5].abs().min() > 0
        with pytest.raises(RuntimeError, match="unused"):
            torch.autograd.grad(
                block(torch.randn(1, 5, 12), state=state.detach()).sum(), hidden_states, allow_unused=False
            )


def test_lengths_make_a_row_independent_of_its_batch():
    block = Mamba(12, 8, 24).double()
    hidden_states = torch.randn(3, 40, 12).double()
    lengths = torch.tensor([40, 17, 1])
    hidden_states[1, 17:], hidden_states[2, 1:] = 1e3, -1e3
    output, state = block(hidden_states, lengths=lengths, return_state=True)
    for row, length in enumerate(lengths.tolist()):
        alone, alone_state = block(hidden_states[row : row + 1, :length], return_state=True)
        torch.testing.assert_close(output[row : row + 1, :length], alone)
        torch.testing.assert_close(state.ssm[row : row + 1], alone_state.ssm)


def test_no_frame_depends_on_a_later_one():
    block = Mamba(12, 8, 24).double()
    hidden_states = torch.randn(1, 30, 12).double()
    changed = hidden_states.clone()
    changed[:, 20:] += 1
    before, after = block(hidden_states), block(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert (before[:, 20:] != after[:, 20:]).any()


def test_bfloat16_autocast_keeps_the_scan_in_float32():
    block = Mamba(12, 8)
    hidden_states = torch.randn(2, 30, 12)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = block(hidden_states, return_state=True)
    assert state.ssm.dtype == torch.float32
    torch.testing.assert_close(output.float(), block(hidden_states), rtol=0.05, atol=0.02)


def test_deepcopy_shares_nothing():
    block = Mamba(12, 8)
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.A_log.zero_()
    assert (block.A_log != 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state is 0"),
        ({"d_conv": 0}, "d_conv is 0"),
        ({"dt_init": "zeros"}, "dt_init is 'zeros'"),
    ],
)
def test_impossible_sizes(options, message):
    with pytest.raises(ConfigError, match=message):
        Mamba(12, **options)


def test_wrong_width_is_named():
    with pytest.raises(ConfigError, match="d_model=12"):
        Mamba(12)(torch.zeros(1, 5, 13))
