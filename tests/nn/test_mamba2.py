import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from mambavox.errors import ConfigError
from mambavox.nn.mamba2 import GatedRMSNorm, Mamba2


def small(**options):
    """A block of 24 channels in heads of 6, with every parameter drawn anew so that none is a harmless 1 or 0."""
    block = Mamba2(12, d_state=8, headdim=6, chunk_size=16, **options)
    redraw(block)
    return block


@torch.no_grad()
def redraw(module):
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
        else:
            torch.nn.init.normal_(parameter, std=0.3 if "conv1d" not in name else 0.5)


def twin(d_model=12, d_state=8, d_conv=4, expand=2, headdim=6, ngroups=1, time_step_limit=(0.0, float("inf"))):
    """Our block and transformers' mixer with the same weights."""
    config = Mamba2Config(
        hidden_size=d_model,
        state_size=d_state,
        conv_kernel=d_conv,
        expand=expand,
        head_dim=headdim,
        num_heads=expand * d_model // headdim,
        n_groups=ngroups,
        time_step_limit=time_step_limit,
        chunk_size=16,
        num_hidden_layers=1,
    )
    mixer = Mamba2Mixer(config, layer_idx=0).eval()
    redraw(mixer)
    block = Mamba2(d_model, d_state, d_conv, expand, headdim, ngroups, dt_limit=time_step_limit)
    block.load_state_dict(mixer.state_dict())
    return block, mixer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"d_state": 16, "d_conv": 2, "headdim": 4, "ngroups": 3},
        {"d_model": 64, "d_state": 32, "headdim": 64, "ngroups": 2},
        {"time_step_limit": (0.3, 0.9)},
    ],
)
def test_equals_transformers_mixer_in_output_and_gradients(options):
    block, mixer = twin(**options)
    hidden_states = torch.randn(2, 60, block.d_model, requires_grad=True)
    weights = torch.randn(2, 60, block.d_model)
    named = dict(mixer.named_parameters())
    output, expected = block(hidden_states), mixer(hidden_states)
    ours = torch.autograd.grad((output * weights).sum(), [hidden_states, *block.parameters()])
    theirs = torch.autograd.grad(
        (expected * weights).sum(), [hidden_states, *(named[name] for name, _ in block.named_parameters())]
    )
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * max(1.0, want.abs().max().item()))


# Read off state-spaces/mamba, mamba_ssm/modules/mamba2.py: d_model 32, d_state 8, headdim 16, ngroups 2.
MAMBA_SSM_SHAPES = {
    "dt_bias": (4,),
    "A_log": (4,),
    "D": (4,),
    "in_proj.weight": (64 + 64 + 16 + 16 + 4, 32),
    "conv1d.weight": (64 + 16 + 16, 1, 4),
    "conv1d.bias": (64 + 16 + 16,),
    "norm.weight": (64,),
    "out_proj.weight": (32, 64),
}


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({}, {}),
        ({"D_has_hdim": True}, {"D": (64,)}),
        ({"rmsnorm": False}, {"norm.weight": None}),
        ({"bias": True, "conv_bias": False}, {"in_proj.bias": (164,), "out_proj.bias": (32,), "conv1d.bias": None}),
    ],
)
def test_state_dict_has_the_names_and_shapes_of_mamba_ssm(options, change):
    block = Mamba2(32, d_state=8, headdim=16, ngroups=2, **options)
    expected = {name: shape for name, shape in (MAMBA_SSM_SHAPES | change).items() if shape is not None}
    assert {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} == expected


def test_initialisation_of_the_scan():
    block = Mamba2(256, headdim=1, A_init_range=(2, 5), dt_min=0.001, dt_max=0.1)
    rates, step = block.A_log.exp(), F.softplus(block.dt_bias)
    assert 2 <= rates.min() < 2.1
    assert 4.9 < rates.max() <= 5 + 1e-5
    assert 0.001 - 1e-6 <= step.min() < 0.0012
    assert 0.08 < step.max() <= 0.1 + 1e-6
    assert step.log().std() > 1.0  # log-uniform over two decades: 1.33
    assert (block.D == 1).all()
    assert (block.norm.weight == 1).all()
    assert F.softplus(Mamba2(64, dt_init_floor=0.05).dt_bias).min() >= 0.05 - 1e-6


class TestGatedRMSNorm:
    @pytest.mark.parametrize("norm_before_gate", [False, True])
    def test_each_group_is_normalised_by_itself(self, norm_before_gate):
        norm = GatedRMSNorm(6, group_size=3, norm_before_gate=norm_before_gate).double()
        redraw(norm)
        y, z = torch.randn(2, 5, 6).double(), torch.randn(2, 5, 6).double()
        gate = F.silu(z)
        before = y if norm_before_gate else y * gate
        halves = [F.rms_norm(half, (3,), eps=norm.eps) for half in before.split(3, dim=-1)]
        expected = torch.cat(halves, dim=-1) * norm.weight
        torch.testing.assert_close(norm(y, z), expected * gate if norm_before_gate else expected)

    def test_half_precision_is_normalised_in_float32(self):
        norm = GatedRMSNorm(8, group_size=8)
        y = torch.full((1, 8), 300.0, dtype=torch.float16)  # its square is beyond float16
        output = norm(y, torch.full_like(y, 10.0))
        assert output.dtype == torch.float16
        torch.testing.assert_close(output, torch.ones_like(y), rtol=1e-3, atol=0)


OPTIONS = [
    {},
    {"ngroups": 2, "d_conv": 1, "norm_before_gate": True},
    {"rmsnorm": False, "D_has_hdim": True, "d_conv": 24, "bias": True, "conv_bias": False},
]


@pytest.mark.parametrize("options", OPTIONS)
class TestStreaming:
    def test_step_by_step_equals_forward(self, options):
        block = small(**options).double()
        hidden_states = torch.randn(2, 30, 12).double()
        expected, expected_state = block(hidden_states, return_state=True)
        state, outputs = block.init_state(2), []
        for frame in hidden_states.unbind(dim=1):
            output, state = block.step(frame, state)
            outputs.append(output)
        torch.testing.assert_close(torch.stack(outputs, dim=1), expected)
        torch.testing.assert_close(state.ssm, expected_state.ssm)
        torch.testing.assert_close(state.conv, expected_state.conv)

    @pytest.mark.parametrize("cut", [1, 15, 16, 17, 40])
    def test_a_stream_cut_anywhere_gives_the_uncut_output(self, options, cut):
        block = small(**options).double()
        hidden_states = torch.randn(2, 41, 12).double()
        first, state = block(hidden_states[:, :cut], return_state=True)
        second = block(hidden_states[:, cut:], state=state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), block(hidden_states))

    def test_streams_can_be_reordered_between_pieces(self, options):
        block = small(**options).double()
        hidden_states = torch.randn(3, 20, 12).double()
        rows = torch.tensor([2, 0])
        _, state = block(hidden_states[:, :11], return_state=True)
        output = block(hidden_states[rows, 11:], state=state.reorder(rows))
        torch.testing.assert_close(output, block(hidden_states)[rows, 11:])

    def test_gradients_flow_through_the_carried_state(self, options):
        block = small(**options)
        hidden_states = torch.randn(1, 10, 12, requires_grad=True)
        _, state = block(hidden_states[:, :5], return_state=True)
        output = block(hidden_states[:, 5:], state=state)
        assert torch.autograd.grad(output.sum(), hidden_states)[0][:, :5].abs().min() > 0


@pytest.mark.parametrize("options", OPTIONS)
class TestLengths:
    def test_a_row_gives_what_it_gives_alone(self, options):
        block = small(**options).double()
        hidden_states = torch.randn(4, 40, 12).double()
        lengths = torch.tensor([40, 17, 1, 0])
        output, state = block(hidden_states, lengths=lengths, return_state=True)
        for row, length in enumerate(lengths.tolist()):
            alone, alone_state = block(hidden_states[row : row + 1, :length], return_state=True)
            torch.testing.assert_close(output[row : row + 1, :length], alone)
            torch.testing.assert_close(state.ssm[row : row + 1], alone_state.ssm)
            torch.testing.assert_close(state.conv[row : row + 1], alone_state.conv)

    def test_padding_may_hold_nan(self, options):
        block = small(**options)
        clean = torch.randn(2, 20, 12)
        lengths = torch.tensor([20, 7])
        dirty = clean.clone()
        dirty[1, 7:] = float("nan")
        results = []
        for hidden_states in (clean, dirty):
            hidden_states.requires_grad_()
            output = block(hidden_states, lengths=lengths)
            results.append([output, *torch.autograd.grad(output.sin().sum(), [hidden_states, *block.parameters()])])
        for got, want in zip(*results, strict=True):
            assert torch.equal(got, want)

    def test_no_frame_depends_on_a_later_one(self, options):
        block = small(**options).double()
        hidden_states = torch.randn(1, 30, 12).double()
        changed = hidden_states.clone()
        changed[:, 20:] += 1
        before, after = block(hidden_states), block(changed)
        assert torch.equal(before[:, :20], after[:, :20])
        assert (before[:, 20:] != after[:, 20:]).any()


def test_chunk_size_changes_no_result():
    block = small().double()
    hidden_states = torch.randn(2, 50, 12).double()
    expected = block(hidden_states)
    block.chunk_size = 7
    torch.testing.assert_close(block(hidden_states), expected)


def test_bfloat16_autocast_keeps_the_scan_in_float32():
    block = small()
    hidden_states = torch.randn(2, 30, 12)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = block(hidden_states, return_state=True)
    assert state.ssm.dtype == torch.float32
    expected = block(hidden_states)
    assert (output.float() - expected).norm() < 0.03 * expected.norm()


def test_a_bfloat16_block_carries_a_float32_state():
    block = Mamba2(12, d_state=8, headdim=6, dtype=torch.bfloat16)
    hidden_states = torch.randn(2, 30, 12)
    output, state = block(hidden_states.bfloat16(), return_state=True)
    assert output.dtype == torch.bfloat16
    assert state.ssm.dtype == block.init_state(2).ssm.dtype == torch.float32
    expected = block.float()(hidden_states)
    assert (output.float() - expected).norm() < 0.03 * expected.norm()


def test_a_bfloat16_block_makes_its_step_sizes_in_float32():
    block = Mamba2(12, d_state=8, headdim=6, d_conv=1, bias=True, dtype=torch.bfloat16)
    with torch.no_grad():
        # All that reaches the scan but the step size is exact in bfloat16: silu(32) is 32.
        block.in_proj.bias.fill_(32.0)[-block.nheads :] = 0.0
        block.conv1d.weight.fill_(1.0)
        block.conv1d.bias.zero_()
    hidden_states = torch.zeros(1, 30, 12)
    _, state = block(hidden_states.bfloat16(), return_state=True)
    _, expected = block.float()(hidden_states, return_state=True)
    torch.testing.assert_close(state.ssm, expected.ssm, rtol=1e-5, atol=0)


def test_deepcopy_shares_nothing():
    block = small()
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.A_log.zero_()
    assert (block.A_log != 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state is 0"),
        ({"d_conv": 0}, "d_conv is 0"),
        ({"headdim": 7}, "headdim is 7; expected a divisor of expand \\* d_model = 24"),
        ({"headdim": 6, "ngroups": 3}, "ngroups is 3; expected a divisor of the number of heads, 4"),
        ({"A_init_range": (0, 16)}, r"A_init_range is \(0, 16\)"),
        ({"dt_limit": (0.5, 0.1)}, r"dt_limit is \(0.5, 0.1\)"),
    ],
)
def test_impossible_sizes(options, message):
    with pytest.raises(ConfigError, match=message):
        Mamba2(12, **({"headdim": 6} | options))


def test_wrong_width_is_named():
    with pytest.raises(ConfigError, match="d_model=12"):
        small()(torch.zeros(1, 5, 13))
