import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mambavox.errors import ConfigError
from mambavox.ops import causal_conv1d, native


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
    with pytest.raises(ConfigError, match="activation is 'relu'"):
        causal_conv1d(x, weight, bias, activation="relu")


@pytest.mark.parametrize("name", ["x", "weight", "bias", "initial_state"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64])
def test_a_dtype_that_is_not_taken_is_named_with_the_mend(name, dtype):
    tensors = {
        "x": torch.zeros(2, 6, 5),
        "weight": torch.zeros(5, 4),
        "bias": torch.zeros(5),
        "initial_state": torch.zeros(2, 5, 3),
    }
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(ConfigError, match=rf"^{name} has dtype {dtype}; expected float32.* \.float\(\)"):
        causal_conv1d(**tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(2, 9, 0), (0, 9, 5), (2, 0, 5)])
@pytest.mark.parametrize("threads", [1, 2])
def test_no_channels_rows_or_frames_at_all(dtype, sizes, threads):
    """The kernels divide by the channels of a task: were there none, the process would end."""
    batch, _, d_inner = sizes
    tensors = {
        "x": torch.randn(sizes, dtype=dtype),
        "weight": torch.randn(d_inner, 4, dtype=dtype),
        "bias": torch.randn(d_inner, dtype=dtype),
        "initial_state": torch.randn(batch, d_inner, 3, dtype=dtype),
    }
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        output, state, *gradients = outputs_and_gradients(tensors, activation="silu")
    finally:
        torch.set_num_threads(before)
    assert output.shape == sizes
    if not output.numel():
        assert torch.equal(state, tensors["initial_state"])
    for tensor, gradient in zip(tensors.values(), gradients, strict=True):
        assert gradient.shape == tensor.shape
    assert not gradients[1].any()
    assert not gradients[2].any()


def outputs_and_gradients(tensors, **options):
    output, state = causal_conv1d(**tensors, return_final_state=True, **options)
    loss = (output * torch.arange(output.numel()).view_as(output).cos()).sum()
    loss = loss + (state * torch.arange(state.numel()).view_as(state).sin()).sum()
    return output, state, *torch.autograd.grad(loss, list(tensors.values()))


def test_reverse_mirrors_rows_inside_their_lengths():
    x, weight, bias = draw(batch=3, time=20)
    initial_state = torch.randn(3, 5, 3).double()
    lengths = [20, 1, 11]
    output, state = causal_conv1d(
        x, weight, bias, initial_state, return_final_state=True, lengths=torch.tensor(lengths), reverse=True
    )
    for row, length in enumerate(lengths):
        expected, expected_state = causal_conv1d(
            x[row : row + 1, :length].flip(1), weight, bias, initial_state[row : row + 1], return_final_state=True
        )
        torch.testing.assert_close(output[row : row + 1, :length].flip(1), expected)
        torch.testing.assert_close(state[row : row + 1], expected_state)


class TestNativeKernels:
    """Float32 goes to the native kernels, float64 to torch's convolution: the one against the other."""

    @pytest.fixture(params=["baseline", "avx2", "avx512"], autouse=True)
    def instruction_set(self, request, monkeypatch):
        if native.why_not():
            pytest.skip(f"the native library {native.why_not()}")
        if request.param not in native.instruction_sets():
            pytest.skip(f"this processor has no {request.param}")
        index = native.instruction_sets().index(request.param)
        monkeypatch.setattr(native, "_best_set", lambda: index)

    def assert_parity(self, tensors, relative=1e-5, **options):
        exact = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
        found, expected = outputs_and_gradients(tensors, **options), outputs_and_gradients(exact, **options)
        for name, got, want in zip(("output", "state", *tensors), found, expected, strict=True):
            assert torch.isfinite(got).all(), name
            scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
            assert not want.numel() or (got - want).abs().max() <= relative * scale, name

    @pytest.mark.parametrize("width", [1, 2, 4, 8, 24, 31])
    @pytest.mark.parametrize("time", [1, 2, 15, 63, 200])
    def test_widths_and_times(self, width, time):
        tensors = {
            "x": torch.randn(2, time, 70).requires_grad_(),
            "weight": torch.randn(70, width).requires_grad_(),
            "bias": torch.randn(70).requires_grad_(),
            "initial_state": torch.randn(2, 70, width - 1).requires_grad_(),
        }
        self.assert_parity(tensors, activation="silu")

    @settings(max_examples=150, deadline=None)
    @given(
        batch=st.integers(1, 3),
        time=st.integers(1, 60),
        d_inner=st.integers(1, 40),
        width=st.integers(1, 30),
        reverse=st.booleans(),
        activation=st.sampled_from([None, "silu"]),
        seed=st.integers(0, 1000),
        data=st.data(),
    )
    def test_any_shape(self, batch, time, d_inner, width, reverse, activation, seed, data):
        torch.manual_seed(seed)
        lengths = data.draw(
            st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch).map(torch.tensor)
        )
        tensors = {"x": torch.randn(batch, time, d_inner), "weight": torch.randn(d_inner, width)}
        if data.draw(st.booleans()):
            tensors["bias"] = torch.randn(d_inner)
        if data.draw(st.booleans()):
            tensors["initial_state"] = torch.randn(batch, d_inner, width - 1)
        tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        self.assert_parity(tensors, lengths=lengths, reverse=reverse, activation=activation)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_packed_sequences(self, reverse):
        tensors = {
            "x": torch.randn(1, 50, 20).requires_grad_(),
            "weight": torch.randn(20, 6).requires_grad_(),
            "initial_state": torch.randn(4, 20, 5).requires_grad_(),
        }
        self.assert_parity(tensors, cu_seqlens=torch.tensor([0, 7, 7, 9, 50]), reverse=reverse)

    def test_padding_is_never_read(self):
        lengths = torch.tensor([0, 7, 20])
        x = torch.randn(3, 20, 8)
        weight = torch.randn(8, 4, requires_grad=True)
        for row, length in enumerate(lengths.tolist()):
            x[row, length:] = float("nan")
        x.requires_grad_()
        output = causal_conv1d(x, weight, lengths=lengths, activation="silu")
        gradients = torch.autograd.grad(output.sum(), (x, weight))
        assert all(torch.isfinite(tensor).all() for tensor in (output, *gradients))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        tensors = {
            "x": torch.randn(2, 40, 33).to(dtype).requires_grad_(),
            "weight": torch.randn(33, 4).to(dtype).requires_grad_(),
        }
        self.assert_parity(tensors, relative=2 * torch.finfo(dtype).eps, activation="silu")

    def test_strides(self):
        tensors = {
            "x": torch.randn(2, 33, 40).transpose(1, 2).requires_grad_(),
            "weight": torch.randn(4, 33).t().requires_grad_(),
        }
        self.assert_parity(tensors)

    def test_opcheck(self):
        x, weight = torch.randn(2, 20, 5, requires_grad=True), torch.randn(5, 4, requires_grad=True)
        torch.library.opcheck(
            torch.ops.mambavox.causal_conv1d,
            (x, weight, None, None, torch.tensor([3, 20]), None, False, True),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )

    def test_second_derivatives_are_refused_not_wrong(self):
        x, weight = torch.randn(1, 9, 2, requires_grad=True), torch.randn(2, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(causal_conv1d(x, weight).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.sum().backward()
