import pytest
import torch
import torch.nn.functional as F

from mambavox.errors import ConfigError
from mambavox.ops.mamba_ssm import causal_conv1d_fn, selective_scan_fn

BATCH, D_INNER, D_STATE, TIME = 2, 12, 3, 17

FORMS = {
    "frames": (BATCH, D_STATE, TIME),
    "one group": (BATCH, 1, D_STATE, TIME),
    "two groups": (BATCH, 2, D_STATE, TIME),
    "three groups": (BATCH, 3, D_STATE, TIME),
    "constant": (D_INNER, D_STATE),
}


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def scan_arguments(B="frames", C="frames", dtype=torch.float64):
    """Arguments of the scan in mamba-ssm's layout, each a leaf that wants a gradient."""
    return {
        "u": draw(BATCH, D_INNER, TIME, dtype=dtype),
        "delta": draw(BATCH, D_INNER, TIME, dtype=dtype),
        "A": (-3 * torch.rand(D_INNER, D_STATE, dtype=dtype)).requires_grad_(),
        "B": draw(*FORMS[B], dtype=dtype),
        "C": draw(*FORMS[C], dtype=dtype),
        "D": draw(D_INNER, dtype=dtype),
        "z": draw(BATCH, D_INNER, TIME, dtype=dtype),
        "delta_bias": draw(D_INNER, dtype=dtype),
    }


def every_channel(matrix, t):
    """B or C at frame t for every channel: (batch, d_inner, d_state)."""
    if matrix.dim() == 2:
        return matrix.expand(BATCH, -1, -1)
    if matrix.dim() == 3:
        return matrix[:, None, :, t].expand(-1, D_INNER, -1)
    return matrix[..., t].repeat_interleave(D_INNER // matrix.shape[1], dim=1)


def scan_by_formula(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    state, frames = u.new_zeros(BATCH, D_INNER, D_STATE), []
    for t in range(u.shape[2]):
        x, dt = u[:, :, t], delta[:, :, t] + (0 if delta_bias is None else delta_bias)
        dt = F.softplus(dt) if delta_softplus else dt
        state = torch.exp(dt[..., None] * A) * state + dt[..., None] * every_channel(B, t) * x[..., None]
        y = (state * every_channel(C, t)).sum(-1) + (0 if D is None else D * x)
        frames.append(y if z is None else y * F.silu(z[:, :, t]))
    return torch.stack(frames, dim=2), state


def gradients(results, tensors):
    """Gradients of a loss that weighs every element of the results differently."""
    loss = sum((result * torch.arange(result.numel()).view_as(result).cos()).sum() for result in results)
    return torch.autograd.grad(loss, list(tensors.values()))


class TestSelectiveScan:
    @pytest.mark.parametrize("C", FORMS)
    @pytest.mark.parametrize("B", FORMS)
    def test_equals_the_formula_in_output_state_and_gradients(self, B, C):
        tensors = scan_arguments(B, C)
        ours = selective_scan_fn(**tensors, delta_softplus=True, return_last_state=True)
        formula = scan_by_formula(**tensors, delta_softplus=True)
        torch.testing.assert_close(ours, formula)
        torch.testing.assert_close(gradients(ours, tensors), gradients(formula, tensors))

    @pytest.mark.parametrize("form", ["frames", "two groups", "constant"])
    def test_without_the_optional_arguments(self, form):
        tensors = scan_arguments(form, form)
        tensors = {name: tensors[name] for name in ("u", "delta", "A", "B", "C")}
        # Steps must be positive where no softplus makes them so.
        tensors["delta"] = tensors["delta"].detach().abs().requires_grad_()
        output = selective_scan_fn(**tensors)
        torch.testing.assert_close(output, scan_by_formula(**tensors)[0])

    @pytest.mark.parametrize("form", ["frames", "constant"])
    def test_bfloat16_gives_bfloat16_and_a_float32_state(self, form):
        tensors = {name: tensor.bfloat16() for name, tensor in scan_arguments(form, form).items()}
        output, state = selective_scan_fn(**tensors, delta_softplus=True, return_last_state=True)
        exact, exact_state = scan_by_formula(**{k: t.double() for k, t in tensors.items()}, delta_softplus=True)
        assert (output.dtype, state.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(output.double(), exact, rtol=2**-7, atol=2**-7)
        torch.testing.assert_close(state.double(), exact_state, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("u", (D_INNER, TIME)),
            ("delta", (BATCH, TIME, D_INNER)),
            ("A", (D_STATE, D_INNER)),
            ("B", (BATCH, TIME, D_STATE)),
            ("C", (BATCH, 5, D_STATE, TIME)),
            ("D", (D_STATE,)),
            ("z", (BATCH, D_INNER, TIME + 1)),
            ("delta_bias", (1, D_INNER)),
        ],
    )
    def test_a_wrong_shape_is_named(self, name, shape):
        with pytest.raises(ConfigError, match=f"^{name} has shape"):
            selective_scan_fn(**scan_arguments() | {name: torch.zeros(shape)})

    @pytest.mark.parametrize("name", ["u", "delta", "D", "z", "delta_bias"])
    def test_a_wrong_dtype_is_named_as_the_caller_names_it(self, name):
        tensors = {key: tensor.detach() for key, tensor in scan_arguments().items()}
        tensors[name] = tensors[name].to(torch.int64)
        with pytest.raises(ConfigError, match=f"^{name} has dtype"):
            selective_scan_fn(**tensors)

    def test_a_complex_A_is_refused(self):
        with pytest.raises(ConfigError, match="A is complex"):
            selective_scan_fn(**scan_arguments() | {"A": torch.zeros(D_INNER, D_STATE, dtype=torch.complex64)})


def convolution_arguments(width):
    return {"x": draw(BATCH, D_INNER, TIME), "weight": draw(D_INNER, width), "bias": draw(D_INNER)}


def convolve_by_formula(x, weight, bias, before=None, silu=False):
    """Each frame from the taps, the last of them on the frame itself."""
    width = weight.shape[1]
    before = x.new_zeros(*x.shape[:2], width - 1) if before is None else before
    inputs = torch.cat([before, x], dim=2)
    frames = [(inputs[:, :, t : t + width] * weight).sum(-1) + bias for t in range(x.shape[2])]
    output = torch.stack(frames, dim=2)
    return output * torch.sigmoid(output) if silu else output


class TestCausalConv1d:
    @pytest.mark.parametrize("activation", [None, "silu", "swish"])
    @pytest.mark.parametrize("width", [1, 2, 4, 24])
    def test_equals_the_formula_in_output_states_and_gradients(self, width, activation):
        tensors = convolution_arguments(width) | {"initial_states": draw(BATCH, D_INNER, width - 1)}
        ours = causal_conv1d_fn(**tensors, return_final_states=True, activation=activation)
        x, weight, bias, before = tensors.values()
        output = convolve_by_formula(x, weight, bias, before, silu=activation is not None)
        formula = (output, torch.cat([before, x], dim=2)[:, :, TIME:])
        torch.testing.assert_close(ours, formula)
        torch.testing.assert_close(gradients(ours, tensors), gradients(formula, tensors))

    def test_without_states(self):
        tensors = convolution_arguments(4)
        torch.testing.assert_close(causal_conv1d_fn(**tensors), convolve_by_formula(**tensors))

    def test_final_states_are_written_where_asked(self):
        tensors = convolution_arguments(4)
        buffer = torch.full((BATCH, D_INNER, 3), float("nan"), dtype=torch.float64)
        _, states = causal_conv1d_fn(**tensors, return_final_states=True, final_states_out=buffer)
        assert states is buffer
        torch.testing.assert_close(buffer, tensors["x"][:, :, -3:])

    @pytest.mark.parametrize("activation", [None, "silu"])
    def test_packed_sequences_do_not_see_each_other(self, activation):
        tensors = convolution_arguments(4)
        lengths = [[5, 1, 11], [2, 9, 6]]
        seq_idx = torch.stack([torch.arange(3).repeat_interleave(torch.tensor(row)) for row in lengths]).int()
        # The last sequence of the second row is padding.
        seq_idx[1, -lengths[1][-1] :] = -1
        ours = causal_conv1d_fn(**tensors, seq_idx=seq_idx, activation=activation)
        x, weight, bias = tensors.values()
        rows = []
        for row, row_lengths in enumerate(lengths):
            pieces = x[row : row + 1].split(row_lengths, dim=2)
            rows.append(torch.cat([convolve_by_formula(p, weight, bias, silu=bool(activation)) for p in pieces], 2))
        formula = torch.cat(rows).masked_fill(seq_idx.lt(0)[:, None], 0.0)
        torch.testing.assert_close(ours, formula)
        torch.testing.assert_close(gradients([ours], tensors), gradients([formula], tensors))

    def test_what_is_not_supported_is_named(self):
        tensors = convolution_arguments(4)
        seq_idx = torch.zeros(BATCH, TIME, dtype=torch.int32)
        with pytest.raises(ConfigError, match="activation is 'gelu'"):
            causal_conv1d_fn(**tensors, activation="gelu")
        with pytest.raises(ConfigError, match="seq_idx goes with neither"):
            causal_conv1d_fn(**tensors, seq_idx=seq_idx, return_final_states=True)
        with pytest.raises(ConfigError, match=r"seq_idx is torch\.int32 of shape"):
            causal_conv1d_fn(**tensors, seq_idx=seq_idx[:, 1:])
        with pytest.raises(ConfigError, match="final_states_out has shape"):
            causal_conv1d_fn(**tensors, return_final_states=True, final_states_out=torch.zeros(BATCH, D_INNER, 4))
        with pytest.raises(ConfigError, match="x has shape"):
            causal_conv1d_fn(torch.zeros(D_INNER, TIME), tensors["weight"])
