"""The Triton backend against the definition: on a GPU where there is one, else in Triton's interpreter if asked for."""

import importlib.util
import os

import pytest
import torch

from mambavox.ops import scan_triton
from mambavox.ops.scan_inputs import ScanInputs
from mambavox.ops.scan_reference import selective_scan_reference

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
NAMES = ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"]
# One value a frame: these go with the frames where rows are cut or turned round.
MOVING = {"x", "dt", "B", "C", "z"}
# Programs the device is said to hold: rows in one go, or cut into segments of 32 steps each.
WHOLE_ROWS, SEGMENTS = 1, 10**6

if importlib.util.find_spec("triton") is None:
    REASON = "triton is not installed"
elif not CUDA and not os.environ.get("TRITON_INTERPRET"):
    REASON = "there is no CUDA GPU; TRITON_INTERPRET=1 runs these tests on the CPU"
else:
    REASON = ""
runs = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture(autouse=True)
def _fresh_memory_holds_nan():
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture(params=[WHOLE_ROWS, SEGMENTS], ids=["whole rows", "segments"])
def way(request, monkeypatch):
    monkeypatch.setattr(scan_triton, "programs_to_fill", lambda device: request.param)


def draw(batch, time, d_inner=3, d_state=4, rows=None, dtype=torch.float32, decay=4.0):
    """Every tensor argument of the scan."""
    generator = torch.Generator().manual_seed(time)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    return {
        "x": randn(batch, time, d_inner),
        "dt": randn(batch, time, d_inner),
        "A": (-decay * torch.rand(d_inner, d_state, generator=generator)).to(DEVICE, dtype),
        "B": randn(batch, time, d_state),
        "C": randn(batch, time, d_state),
        "D": randn(d_inner),
        "z": randn(batch, time, d_inner),
        "dt_bias": randn(d_inner),
        "initial_state": randn(batch if rows is None else rows, d_inner, d_state),
    }


def stretches(tensors, lengths, cu_seqlens):
    """Batch index and frames of each row of the state."""
    batch, time, _ = tensors["x"].shape
    if cu_seqlens is not None:
        return [(0, slice(a, b)) for a, b in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)]
    return [
        (row, slice(0, length)) for row, length in enumerate([time] * batch if lengths is None else lengths.tolist())
    ]


def expected(tensors, grad_y, grad_state, dt_softplus, reverse, lengths, cu_seqlens):
    """What the definition gives in float64, each row on its own and turned round by hand."""
    leaves = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    y = torch.zeros_like(leaves["x"])
    states, loss = [], torch.zeros((), dtype=torch.float64, device=DEVICE)
    for row, (index, frames) in enumerate(stretches(tensors, lengths, cu_seqlens)):

        def turned(tensor):
            return tensor.flip(1) if reverse else tensor

        alone = {
            name: turned(leaf[index : index + 1, frames]) if name in MOVING else leaf for name, leaf in leaves.items()
        }
        if "initial_state" in alone:
            alone["initial_state"] = alone["initial_state"][row : row + 1]
        part, state = selective_scan_reference(**alone, dt_softplus=dt_softplus)
        part = turned(part)
        y = y.detach()
        y[index, frames] = part[0].detach()
        states.append(state)
        loss = loss + (part[0] * grad_y[index, frames]).sum() + (state[0] * grad_state[row]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {"y": y, "final_state": torch.cat(states).detach(), **dict(zip(tensors, gradients, strict=True))}


def run(tensors, dt_softplus=True, reverse=False, lengths=None, cu_seqlens=None):
    """Output, final state and gradients of the backend, and the same of the definition."""
    lengths, cu_seqlens = (None if rows is None else rows.to(DEVICE) for rows in (lengths, cu_seqlens))
    rows = tensors["x"].shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    grad_y = torch.randn(tensors["x"].shape).to(DEVICE, tensors["x"].dtype)
    grad_state = torch.randn(rows, *tensors["A"].shape).to(DEVICE)
    want = expected(tensors, grad_y, grad_state, dt_softplus, reverse, lengths, cu_seqlens)

    given = {name: tensors.get(name) for name in NAMES}
    if lengths is not None:  # what lies beyond a row's length must not matter
        outside = torch.arange(grad_y.shape[1], device=DEVICE)[None, :, None] >= lengths[:, None, None]
        given.update({name: given[name].masked_fill(outside, torch.nan) for name in MOVING & tensors.keys()})
        grad_y = grad_y.masked_fill(outside, torch.nan)
    inputs = ScanInputs(**given, dt_softplus=dt_softplus, lengths=lengths, cu_seqlens=cu_seqlens, reverse=reverse)
    y, final_state, checkpoints = scan_triton.forward(inputs, training=True)
    gradients = scan_triton.backward(grad_y, grad_state, inputs, checkpoints)
    got = {"y": y, "final_state": final_state, **dict(zip(NAMES, gradients, strict=True))}
    for name in NAMES:
        assert (got[name] is None) == (given[name] is None), name
    return {name: tensor for name, tensor in got.items() if tensor is not None}, want


def assert_same(got, want, relative=1e-5):
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert tensor.shape == want[name].shape, name
        error = (tensor.double() - want[name]).abs().max().item()
        scale = max(1.0, want[name].abs().max().item())
        assert error <= relative * scale, f"{name}: {error:.2e} of {scale:.2e}"


@runs
class TestParityWithTheDefinition:
    @pytest.mark.parametrize("time", [1, 2, 17, 63, 130])
    def test_times(self, way, time):
        assert_same(*run(draw(1, time)))

    def test_segments_of_several_chunks(self, monkeypatch):
        monkeypatch.setattr(scan_triton, "programs_to_fill", lambda device: 3)
        assert_same(*run(draw(1, 97), reverse=True))

    @pytest.mark.parametrize("d_state", [1, 8, 16, 24])
    def test_state_sizes(self, d_state):
        assert_same(*run(draw(1, 5, d_state=d_state)))

    def test_a_state_size_that_is_no_power_of_two_in_segments(self, monkeypatch):
        monkeypatch.setattr(scan_triton, "programs_to_fill", lambda device: SEGMENTS)
        assert_same(*run(draw(1, 34, d_state=24)))

    @pytest.mark.parametrize(("d_inner", "d_state"), [(1, 4), (24, 16), (64, 16), (65, 16)])
    def test_channel_blocks(self, d_inner, d_state):
        assert_same(*run(draw(2, 3, d_inner, d_state)))

    def test_channel_blocks_in_segments(self, monkeypatch):
        monkeypatch.setattr(scan_triton, "programs_to_fill", lambda device: SEGMENTS)
        assert_same(*run(draw(1, 34, 40, 16)))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_lengths_with_nan_in_the_padding(self, way, reverse):
        assert_same(*run(draw(4, 40), lengths=torch.tensor([0, 1, 5, 35]), reverse=reverse))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_packed_sequences(self, way, reverse):
        cu_seqlens = torch.tensor([0, 3, 3, 35, 36, 50])
        assert_same(*run(draw(1, 50, rows=5), cu_seqlens=cu_seqlens, reverse=reverse))

    @pytest.mark.parametrize("left_out", [["D"], ["z"], ["dt_bias"], ["initial_state"]], ids=str)
    def test_an_argument_left_out(self, left_out):
        assert_same(*run({name: tensor for name, tensor in draw(2, 4).items() if name not in left_out}))

    def test_all_that_can_be_left_out_is(self, way):
        tensors = {name: tensor for name, tensor in draw(1, 34).items() if name in ("x", "dt", "A", "B", "C")}
        tensors["dt"] = tensors["dt"].abs()
        assert_same(*run(tensors, dt_softplus=False))

    def test_strong_decay_underflows_to_zero(self, way):
        assert_same(*run(draw(1, 40, decay=400.0)))

    def test_small_step_sizes_keep_their_precision(self):
        tensors = draw(1, 4, d_inner=1)
        tensors["dt"] -= 10
        got, want = run(tensors)
        # Proportional to step sizes of about 5e-5, of which log(1 + exp(dt)) would keep three digits.
        torch.testing.assert_close(got["B"].double(), want["B"], rtol=2e-5, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_rounded_once(self, dtype):
        # A GPU rounds to the nearest, at most half a unit in the last place; the interpreter may cut.
        relative = torch.finfo(dtype).eps * (0.51 if CUDA else 1.01)
        tensors = draw(1, 9, dtype=dtype)
        tensors["A"], tensors["dt_bias"] = tensors["A"].float(), tensors["dt_bias"].float()
        got, want = run(tensors)
        assert got["final_state"].dtype == torch.float32
        assert got["y"].dtype == dtype
        assert all(got[name].dtype == tensors[name].dtype for name in NAMES)
        assert_same(got, want, relative)
        exact = ("final_state", "A", "dt_bias")
        assert_same({name: got[name] for name in exact}, {name: want[name] for name in exact})

    def test_any_strides(self):
        tensors = draw(2, 4)
        tensors["x"], tensors["z"] = torch.cat([tensors["x"], tensors["z"]], dim=-1).chunk(2, dim=-1)
        tensors["dt"] = tensors["dt"].transpose(0, 1).contiguous().transpose(0, 1)
        tensors["B"] = tensors["B"].transpose(1, 2).contiguous().transpose(1, 2)
        tensors["C"] = tensors["C"][:1].expand(2, -1, -1)
        tensors["A"] = tensors["A"].t().contiguous().t()
        tensors["D"] = tensors["D"][:1].expand(3)
        tensors["initial_state"] = tensors["initial_state"][:1].expand(2, -1, -1)
        assert_same(*run(tensors))


@runs
class TestStates:
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("cut", [0, 1, 32, 37])
    def test_a_sequence_cut_anywhere_gives_the_uncut_result(self, way, cut, reverse):
        tensors = draw(1, 40)

        def scan(frames, state):
            part = {name: t[:, frames] if name in MOVING else t for name, t in tensors.items()}
            part["initial_state"] = state
            inputs = ScanInputs(**part, dt_softplus=True, lengths=None, cu_seqlens=None, reverse=reverse)
            return scan_triton.forward(inputs, training=False)

        y, state, checkpoints = scan(slice(0, 40), tensors["initial_state"])
        assert checkpoints.numel() == 0
        pieces, carried = {}, tensors["initial_state"]
        parts = [slice(0, cut), slice(cut, 40)]
        for frames in reversed(parts) if reverse else parts:
            pieces[frames.start, frames.stop], carried, _ = scan(frames, carried)
        joined = torch.cat([pieces[part.start, part.stop] for part in parts], dim=1)
        torch.testing.assert_close(joined, y, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(carried, state, rtol=1e-6, atol=1e-6)

    def test_no_frames_at_all(self):
        got, want = run(draw(2, 0))
        assert torch.equal(got["final_state"].double(), want["final_state"])
        torch.testing.assert_close(got["initial_state"].double(), want["initial_state"])
        assert (got["A"] == 0).all()

    def test_no_channels_at_all(self, way):
        got, _ = run(draw(2, 4, d_inner=0))
        assert got["y"].shape == (2, 4, 0)
        assert got["B"].shape == got["C"].shape == (2, 4, 4)
        assert (got["B"] == 0).all()
        assert (got["C"] == 0).all()

    def test_a_final_state_without_gradient_has_gradient_zero(self, way):
        inputs = ScanInputs(**draw(1, 34), dt_softplus=True, lengths=None, cu_seqlens=None, reverse=False)
        y, final_state, checkpoints = scan_triton.forward(inputs, training=True)
        left_out = scan_triton.backward(y, None, inputs, checkpoints)
        zero = scan_triton.backward(y, torch.zeros_like(final_state), inputs, checkpoints)
        assert all(torch.equal(got, want) for got, want in zip(left_out, zero, strict=True))

    def test_the_same_bits_every_time(self):
        torch.manual_seed(3)
        first, _ = run(draw(2, 4, 40, 16))
        torch.manual_seed(3)
        second, _ = run(draw(2, 4, 40, 16))
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("time", [0, 1, 31, 32, 33, 3000])
def test_checkpoints_take_one_state_in_32_frames_and_one_a_row(time):
    padded = scan_triton.checkpoint_shape((4, time, 6), 5, 4)
    assert padded == (4 * (time // 32 + 1), 6, 5)
    packed = scan_triton.checkpoint_shape((1, time, 6), 5, 7)
    assert packed == (time // 32 + 7, 6, 5)


class TestReasons:
    def test_a_machine_without_triton(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert scan_triton.why_not(torch.device("cuda")) == "triton is not installed"

    def test_the_cpu(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        assert scan_triton.why_not(torch.device("cpu")) == "runs on cuda, not on cpu"

    @runs
    def test_where_it_runs(self):
        assert scan_triton.why_not(DEVICE) is None
