"""Every backend of the selective scan against the definition, in output and in every gradient."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mambavox.errors import BackendError, ConfigError
from mambavox.ops import backend_report, native, selected_backend, selective_scan, selective_scan_reference

TIMES = [1, 2, 8, 9, 63, 500, 1000, 1501]
FAST = ["torch", "cpu-baseline", "cpu-avx2", "cpu-avx512"]


@pytest.fixture(params=FAST)
def backend(request, monkeypatch):
    return chosen(request.param, monkeypatch)


@pytest.fixture(params=["reference", *FAST])
def any_backend(request, monkeypatch):
    return chosen(request.param, monkeypatch)


def chosen(name, monkeypatch):
    """Name for ``backend=``; of the native kernels one instruction set, skipped where this machine lacks it."""
    name, _, instruction_set = name.partition("-")
    if instruction_set:
        if native.why_not():
            pytest.skip(f"the native library {native.why_not()}")
        if instruction_set not in native.instruction_sets():
            pytest.skip(f"this processor has no {instruction_set}")
        index = native.instruction_sets().index(instruction_set)
        monkeypatch.setattr(native, "_best_set", lambda: index)
    return name


def arguments(batch, time, d_inner, d_state, dtype=torch.float64, seed=0, decay=4.0, rows=None):
    """Every tensor argument of the scan, as a leaf that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return {
        "x": draw(batch, time, d_inner),
        "dt": draw(batch, time, d_inner),
        "A": (-decay * torch.rand(d_inner, d_state, generator=generator, dtype=torch.float64))
        .to(dtype)
        .requires_grad_(),
        "B": draw(batch, time, d_state),
        "C": draw(batch, time, d_state),
        "D": draw(d_inner),
        "z": draw(batch, time, d_inner),
        "dt_bias": draw(d_inner),
        "initial_state": draw(batch if rows is None else rows, d_inner, d_state),
    }


def outputs_and_gradients(tensors, backend, lengths=None, dt_softplus=True, **options):
    """Output, final state, and the gradient of a loss that weighs every element of both differently."""
    output, state = selective_scan(
        **tensors, dt_softplus=dt_softplus, lengths=lengths, return_final_state=True, backend=backend, **options
    )
    valid = output if lengths is None else torch.cat([row[:n] for row, n in zip(output, lengths.tolist(), strict=True)])
    loss = (valid * torch.arange(valid.numel()).view_as(valid).cos()).sum()
    loss = loss + (state * torch.arange(state.numel()).view_as(state).sin()).sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    return {"output": output, "final_state": state, **dict(zip(tensors, gradients, strict=True))}


def errors(actual, expected):
    """Largest difference of each tensor, relative to its largest element (or 1 where that is smaller)."""
    found = {}
    for name, want in expected.items():
        got = actual[name]
        assert got.shape == want.shape, name
        assert torch.isfinite(got).all(), name
        if want.numel():
            error = (got.double() - want.double()).abs().max().item()
            found[name] = error / max(1.0, want.double().abs().max().item())
    return found


def assert_same(actual, expected, relative):
    for name, error in errors(actual, expected).items():
        assert error <= relative, f"{name}: {error:.2e}"


def double(tensors):
    return {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}


def assert_parity(backend, shape, **options):
    """A backend gives what the definition gives in float64.

    The torch backend is run in float64 too, the native kernels in float32, where they must be within 1e-5.
    """
    scan_options = {name: options.pop(name) for name in list(options) if name in SCAN_OPTIONS}
    exact = backend == "torch"
    tensors = arguments(*shape, dtype=torch.float64 if exact else torch.float32, **options)
    expected = outputs_and_gradients(double(tensors), "reference", **scan_options)
    assert_same(outputs_and_gradients(tensors, backend, **scan_options), expected, relative=1e-11 if exact else 1e-5)


SCAN_OPTIONS = ("lengths", "cu_seqlens", "reverse", "dt_softplus")


class TestDefinition:
    def test_gradients_are_those_of_finite_differences(self):
        tensors = arguments(2, 5, 3, 2)
        lengths = torch.tensor([3, 5])

        def scan(*values):
            return selective_scan_reference(
                **dict(zip(tensors, values, strict=True)), dt_softplus=True, lengths=lengths
            )

        assert torch.autograd.gradcheck(scan, tuple(tensors.values()))

    def test_one_channel_by_hand(self):
        one = torch.ones(1, 2, 1, dtype=torch.float64)
        A = torch.full((1, 1), -0.5, dtype=torch.float64)
        output, state = selective_scan_reference(
            one * 3, one * 2, A, one, one, D=torch.full((1,), 0.25, dtype=torch.float64)
        )
        first = 2 * 3
        second = torch.tensor(-1.0, dtype=torch.float64).exp() * first + 6
        torch.testing.assert_close(output.flatten(), torch.tensor([first + 0.75, second + 0.75]).double())
        torch.testing.assert_close(state.flatten(), second[None])


class TestParityWithTheDefinition:
    @pytest.mark.parametrize("time", TIMES)
    def test_times(self, backend, time):
        assert_parity(backend, (2, time, 5, 4))

    @pytest.mark.parametrize("time", [63, 500])
    def test_float32_is_not_further_off_than_twice_the_definition_in_float32(self, backend, time):
        """In the root mean square of each tensor over four draws; of a few elements alone it would be luck."""
        squares = {}
        for seed in range(4):
            tensors = arguments(2, time, 64, 16, dtype=torch.float32, seed=seed)
            exact = outputs_and_gradients(double(tensors), "reference")
            for index, name in enumerate((backend, "reference")):
                for key, value in outputs_and_gradients(tensors, name).items():
                    squares.setdefault(key, [0.0, 0.0])[index] += (value - exact[key]).square().sum().item()
        for key, (ours, definition) in squares.items():
            assert ours <= 4 * definition, f"{key}: {(ours / definition) ** 0.5:.2f} times the definition's error"

    @pytest.mark.parametrize("d_state", [1, 4, 8, 13, 16, 24, 64])
    def test_state_sizes(self, backend, d_state):
        assert_parity(backend, (2, 63, 6, d_state))

    @pytest.mark.parametrize("d_inner", [1, 24, 64, 100, 301])
    def test_widths(self, backend, d_inner):
        assert_parity(backend, (2, 40, d_inner, 16))

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("time", [1, 9, 63, 500])
    def test_ragged_lengths(self, backend, time, reverse):
        lengths = torch.tensor([0, 1, time // 2, time - 1, time])
        assert_parity(backend, (5, time, 3, 4), lengths=lengths, reverse=reverse)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_packed_sequences(self, backend, reverse):
        cu_seqlens = torch.tensor([0, 0, 1, 40, 41, 90])
        assert_parity(backend, (1, 90, 5, 4), rows=5, cu_seqlens=cu_seqlens, reverse=reverse)

    @pytest.mark.parametrize("threads", [2, 5])
    def test_threads(self, backend, threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert_parity(backend, (2, 200, 40, 16))
        finally:
            torch.set_num_threads(before)

    def test_a_plain_step(self, backend):
        tensors = arguments(2, 30, 5, 4, dtype=torch.float64 if backend == "torch" else torch.float32)
        tensors["dt"] = tensors["dt"].detach().abs().requires_grad_()
        del tensors["dt_bias"]
        expected = outputs_and_gradients(double(tensors), "reference", dt_softplus=False)
        assert_same(outputs_and_gradients(tensors, backend, dt_softplus=False), expected, relative=1e-5)

    def test_strong_decay_underflows_to_zero(self, backend):
        """Exponents down to several hundred below zero."""
        tensors = arguments(2, 200, 4, 4, dtype=torch.float32, decay=80.0)
        assert_same(
            outputs_and_gradients(tensors, backend), outputs_and_gradients(double(tensors), "reference"), relative=1e-5
        )

    def test_a_slow_decay_is_kept_over_many_frames(self, backend):
        """2,000 frames of decay 0.9999: an error of 1e-7 in each would grow to 2e-4."""
        tensors = {name: tensor.detach().float() for name, tensor in arguments(1, 2000, 16, 4).items()}
        tensors["dt"] = torch.full_like(tensors["dt"], 1e-4)
        tensors["A"] = torch.full_like(tensors["A"], -1.0)
        del tensors["dt_bias"]
        _, state = selective_scan(**tensors, return_final_state=True, backend=backend)
        _, expected = selective_scan(**double(tensors), return_final_state=True, backend="reference")
        _, rounded = selective_scan(**tensors, return_final_state=True, backend="reference")
        assert (state - expected).abs().max() <= 2 * (rounded - expected).abs().max()

    def test_uninitialised_memory_is_never_read(self, backend):
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # new memory holds NaN
        try:
            assert torch.empty(3).isnan().all(), "this torch no longer poisons new memory: the test shows nothing"
            assert_parity(backend, (2, 37, 5, 4), lengths=torch.tensor([0, 20]))
        finally:
            torch.use_deterministic_algorithms(False)

    def test_the_same_bits_every_time(self, backend):
        tensors = arguments(3, 90, 200, 16, dtype=torch.float32)
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            first = outputs_and_gradients(tensors, backend)
            again = outputs_and_gradients(tensors, backend)
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(first[name], again[name]) for name in first)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("lengths", [None, torch.tensor([0, 50])])
    def test_half_precision(self, backend, dtype, lengths):
        """The state stays float32; outputs and gradients are exact within two of the dtype's steps."""
        tensors = arguments(2, 50, 40, 4, dtype=dtype)
        found = outputs_and_gradients(tensors, backend, lengths)
        expected = outputs_and_gradients(double(tensors), "reference", lengths)
        assert found["final_state"].dtype == torch.float32
        assert all(found[name].dtype == dtype for name in found if name != "final_state")
        assert_same({"final_state": found["final_state"]}, {"final_state": expected["final_state"]}, relative=1e-5)
        assert_same(found, expected, relative=2 * torch.finfo(dtype).eps)

    def test_tensors_of_different_dtypes_and_strides(self, backend):
        tensors = arguments(2, 33, 24, 4, dtype=torch.float32)
        tensors["x"] = torch.randn(2, 24, 33).transpose(1, 2).requires_grad_()
        tensors["z"] = torch.randn(2, 33, 48).to(torch.bfloat16)[:, :, 24:].requires_grad_()
        tensors["B"] = torch.randn(33, 2, 4).to(torch.float16).transpose(0, 1).requires_grad_()
        expected = outputs_and_gradients(double(tensors), "reference")
        found = outputs_and_gradients(tensors, backend)
        rounded = {name: found.pop(name) for name in ("z", "B")}
        assert_same(found, {name: expected[name] for name in found}, relative=1e-5)
        assert_same(rounded, {name: expected[name] for name in rounded}, relative=2**-7)

    @settings(max_examples=1000, deadline=None)
    @given(
        name=st.sampled_from(FAST),
        batch=st.integers(1, 3),
        time=st.integers(1, 70),
        d_inner=st.integers(1, 40),
        d_state=st.integers(1, 20),
        seed=st.integers(0, 10_000),
        left_out=st.sets(st.sampled_from(["D", "z", "dt_bias", "initial_state"])),
        reverse=st.booleans(),
        data=st.data(),
    )
    def test_any_shape(self, name, batch, time, d_inner, d_state, seed, left_out, reverse, data):
        lengths = data.draw(
            st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch).map(torch.tensor)
        )
        with pytest.MonkeyPatch.context() as patch:
            backend = chosen(name, patch)
            tensors = arguments(batch, time, d_inner, d_state, dtype=torch.float32, seed=seed)
            tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
            assert_same(
                outputs_and_gradients(tensors, backend, lengths, reverse=reverse),
                outputs_and_gradients(double(tensors), "reference", lengths, reverse=reverse),
                relative=1e-5,
            )


class TestLengthsAndState:
    def test_no_frames_at_all(self, any_backend):
        tensors = arguments(2, 0, 4, 3, dtype=torch.float32)
        output, state = selective_scan(**tensors, return_final_state=True, backend=any_backend)
        assert output.shape == (2, 0, 4)
        assert torch.equal(state, tensors["initial_state"])

    @pytest.mark.parametrize("shape", [(2, 9, 0, 3), (0, 9, 4, 3), (2, 9, 4, 0)])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_no_channels_rows_or_states_at_all(self, backend, shape, threads):
        """The kernels divide by the channels of a task: were there none, the process would end."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert_parity(backend, shape)
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("shape", [(2, 0, 4, 3), (2, 0, 0, 3)])
    def test_gradients_of_no_frames_at_all(self, backend, shape):
        tensors = arguments(*shape, dtype=torch.float32)
        found = outputs_and_gradients(tensors, backend)
        for name, tensor in tensors.items():
            assert found[name].shape == tensor.shape
            if name != "initial_state":
                assert not found[name].any(), name
        # The final state is the initial one, and each of its elements is weighed by a sine in the loss.
        assert torch.equal(
            found["initial_state"], torch.arange(found["final_state"].numel()).view_as(found["final_state"]).sin()
        )

    def test_padding_may_hold_anything_even_nan(self, any_backend):
        tensors = arguments(3, 20, 4, 3, dtype=torch.float32)
        lengths = torch.tensor([0, 7, 20])
        clean = outputs_and_gradients(tensors, any_backend, lengths)
        dirty = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name in ("x", "dt", "B", "C", "z"):
            for row, length in enumerate(lengths.tolist()):
                dirty[name][row, length:] = float("nan")
        output, state = selective_scan(
            **dirty, dt_softplus=True, lengths=lengths, return_final_state=True, backend=any_backend
        )
        torch.testing.assert_close(output, clean["output"])
        torch.testing.assert_close(state, clean["final_state"])

    def test_frames_beyond_the_length_are_zero_and_the_state_stands_still(self, any_backend):
        tensors = arguments(2, 12, 4, 3, dtype=torch.float32)
        output, state = selective_scan(
            **tensors, dt_softplus=True, lengths=torch.tensor([0, 5]), return_final_state=True, backend=any_backend
        )
        assert (output[0] == 0).all()
        assert (output[1, 5:] == 0).all()
        assert (output[1, :5] != 0).any()
        torch.testing.assert_close(state[0], tensors["initial_state"][0])

    def test_a_row_alone_gives_what_it_gives_in_a_batch(self, any_backend):
        tensors = arguments(2, 30, 4, 3, dtype=torch.float32)
        output, state = selective_scan(
            **tensors, dt_softplus=True, lengths=torch.tensor([13, 30]), return_final_state=True, backend=any_backend
        )
        alone = {
            name: tensor[:1, :13] if tensor.dim() == 3 and name != "initial_state" else tensor
            for name, tensor in tensors.items()
        }
        alone["initial_state"] = tensors["initial_state"][:1]
        expected, expected_state = selective_scan(
            **alone, dt_softplus=True, return_final_state=True, backend=any_backend
        )
        torch.testing.assert_close(output[:1, :13], expected)
        torch.testing.assert_close(state[:1], expected_state)

    @pytest.mark.parametrize("cut", range(41))
    def test_a_sequence_cut_anywhere_gives_the_uncut_result(self, any_backend, cut):
        tensors = {name: tensor.detach().float() for name, tensor in arguments(2, 40, 4, 3).items()}
        expected, expected_state = selective_scan(
            **tensors, dt_softplus=True, return_final_state=True, backend=any_backend
        )
        fixed = {name: tensors[name] for name in ("A", "D", "dt_bias")}
        state, pieces = tensors["initial_state"], []
        for part in (slice(0, cut), slice(cut, 40)):
            moving = {name: tensors[name][:, part] for name in ("x", "dt", "B", "C", "z")}
            piece, state = selective_scan(
                **moving, **fixed, dt_softplus=True, initial_state=state, return_final_state=True, backend=any_backend
            )
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state, expected_state, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_packed_sequences_are_those_run_alone(self, any_backend, reverse):
        tensors = {n: t.detach() for n, t in arguments(1, 50, 4, 3, dtype=torch.float32, rows=3).items()}
        boundaries = [0, 7, 8, 50]
        output, state = selective_scan(
            **tensors,
            dt_softplus=True,
            cu_seqlens=torch.tensor(boundaries),
            reverse=reverse,
            return_final_state=True,
            backend=any_backend,
        )
        for index, (first, last) in enumerate(itertools.pairwise(boundaries)):
            alone = dict(tensors)
            for name in ("x", "dt", "B", "C", "z"):
                alone[name] = tensors[name][:, first:last]
            alone["initial_state"] = tensors["initial_state"][index : index + 1]
            expected, expected_state = selective_scan(
                **alone, dt_softplus=True, reverse=reverse, return_final_state=True, backend=any_backend
            )
            torch.testing.assert_close(output[:, first:last], expected)
            torch.testing.assert_close(state[index : index + 1], expected_state)

    def test_reverse_is_the_scan_of_rows_turned_inside_their_lengths(self, any_backend):
        tensors = {n: t.detach() for n, t in arguments(3, 20, 4, 3, dtype=torch.float32).items()}
        lengths = [20, 1, 11]
        output, state = selective_scan(
            **tensors,
            dt_softplus=True,
            lengths=torch.tensor(lengths),
            reverse=True,
            return_final_state=True,
            backend=any_backend,
        )
        for row, length in enumerate(lengths):
            turned = dict(tensors)
            for name in ("x", "dt", "B", "C", "z"):
                turned[name] = tensors[name][row : row + 1, :length].flip(1)
            turned["initial_state"] = tensors["initial_state"][row : row + 1]
            expected, expected_state = selective_scan(
                **turned, dt_softplus=True, return_final_state=True, backend="reference"
            )
            torch.testing.assert_close(output[row : row + 1, :length].flip(1), expected)
            torch.testing.assert_close(state[row : row + 1], expected_state)


class TestAsATorchOperator:
    """``torch.ops.mambavox.selective_scan`` under torch's own machinery."""

    def scan(self, tensors, backend, **options):
        return selective_scan(**tensors, dt_softplus=True, return_final_state=True, backend=backend, **options)

    def test_opcheck(self, backend):
        tensors = arguments(2, 20, 5, 4, dtype=torch.float32)
        values = [*list(tensors.values())[:8], True, tensors["initial_state"], None, None, False]
        torch.library.opcheck(
            torch.ops.mambavox.selective_scan,
            (*values, True, backend),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )

    @pytest.mark.parametrize("option", ["plain", "lengths", "packed", "reverse"])
    def test_compiles_as_one_graph(self, backend, option):
        tensors = arguments(1, 20, 5, 4, dtype=torch.float32, rows=2 if option == "packed" else 1)
        options = {
            "plain": {},
            "lengths": {"lengths": torch.tensor([13])},
            "packed": {"cu_seqlens": torch.tensor([0, 6, 20])},
            "reverse": {"reverse": True},
        }[option]

        def run(tensors):
            output, state = selective_scan(
                **tensors, dt_softplus=True, return_final_state=True, backend=backend, **options
            )
            return output.square().sum() + state.square().sum()

        expected = torch.autograd.grad(run(tensors), list(tensors.values()))
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        found = torch.autograd.grad(compiled(tensors), list(tensors.values()))
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want)

    def test_exports(self, backend):
        class Scan(torch.nn.Module):
            def forward(self, x, dt, A, B, C):
                return selective_scan(x, dt, A, B, C, dt_softplus=True, backend=backend)

        tensors = {n: t.detach() for n, t in arguments(2, 20, 5, 4, dtype=torch.float32).items()}
        inputs = tuple(tensors[name] for name in ("x", "dt", "A", "B", "C"))
        time = torch.export.Dim("time", min=2, max=1000)
        moving = {1: time}
        exported = torch.export.export(Scan(), inputs, dynamic_shapes=(moving, moving, None, moving, moving))
        longer = tuple(t.repeat(1, 3, 1) if t.dim() == 3 else t for t in inputs)
        torch.testing.assert_close(exported.module()(*longer), Scan()(*longer))

    def test_flops_are_counted(self, backend):
        tensors = arguments(2, 30, 5, 4, dtype=torch.float32)
        with FlopCounterMode(display=False) as forward:
            output, _ = self.scan(tensors, backend)
        assert forward.get_total_flops() == 2 * 30 * 5 * (7 * 4 + 3)
        with FlopCounterMode(display=False) as backward:
            output.sum().backward()
        assert backward.get_total_flops() == 2 * 30 * 5 * (20 * 4 + 8)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_activation_checkpointing(self, backend, reentrant):
        tensors = arguments(2, 30, 5, 4, dtype=torch.float32)

        def run(*values):
            return self.scan(dict(zip(tensors, values, strict=True)), backend)[0]

        expected = torch.autograd.grad(run(*tensors.values()).square().sum(), list(tensors.values()))
        output = checkpoint(run, *tensors.values(), use_reentrant=reentrant)
        output.square().sum().backward()
        for tensor, want in zip(tensors.values(), expected, strict=True):
            torch.testing.assert_close(tensor.grad, want)

    def test_autocast_leaves_the_state_in_float32(self, backend):
        tensors = arguments(2, 30, 8, 4, dtype=torch.float32)
        linear = torch.nn.Linear(8, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tensors["x"] = linear(tensors["x"].detach())
            output, state = self.scan(tensors, backend)
        assert output.dtype == torch.bfloat16
        assert state.dtype == torch.float32
        output.sum().backward()
        assert linear.weight.grad.abs().sum() > 0

    def test_a_backward_pass_under_autocast_is_as_exact_as_outside(self, backend):
        tensors = arguments(2, 30, 8, 4, dtype=torch.float32)

        def gradients():
            return torch.autograd.grad(self.scan(tensors, backend)[0].sum(), list(tensors.values()), allow_unused=True)

        expected = gradients()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gradients()
        assert all(torch.equal(got, want) for got, want in zip(found, expected, strict=True))

    @pytest.mark.parametrize("pre_dispatch", [False, True])
    def test_a_tracer_sees_one_call(self, backend, pre_dispatch):
        tensors = {n: t.detach() for n, t in arguments(2, 9, 5, 4, dtype=torch.float32).items()}

        def scan(x):
            return self.scan({**tensors, "x": x}, backend)

        traced = make_fx(scan, pre_dispatch=pre_dispatch)(tensors["x"])
        targets = [node.target for node in traced.graph.nodes]
        assert targets.count(torch.ops.mambavox.selective_scan.default) == 1
        other = torch.randn_like(tensors["x"])
        for got, want in zip(traced(other), scan(other), strict=True):
            torch.testing.assert_close(got, want)

    def test_fake_tensors_never_reach_a_kernel(self, backend):
        mode = FakeTensorMode()
        tensors = {n: mode.from_tensor(t.detach()) for n, t in arguments(2, 9, 5, 4, dtype=torch.float32).items()}
        output, state = self.scan(tensors, backend)
        assert type(output) is type(state) is FakeTensor
        assert output.shape == (2, 9, 5)
        assert state.shape == (2, 5, 4)

    def test_transforms_are_refused_not_wrong(self, backend):
        tensors = {n: t.detach() for n, t in arguments(2, 9, 5, 4, dtype=torch.float32).items()}
        x = tensors["x"]

        def scan(x):
            return self.scan({**tensors, "x": x}, backend)[0]

        with pytest.raises(RuntimeError, match="functorch transforms"):
            torch.vmap(scan)(x[None])
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode AD"):
            scan(forward_ad.make_dual(x, x))

    def test_second_derivatives_are_refused_not_wrong(self, backend):
        tensors = arguments(1, 9, 2, 2, dtype=torch.float32)
        output, _ = self.scan(tensors, backend)
        (gradient,) = torch.autograd.grad(output.sum(), tensors["x"], create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.sum().backward()

    def test_nothing_is_kept_where_nothing_wants_a_gradient(self, backend):
        tensors = {n: t.detach() for n, t in arguments(1, 40, 2, 2, dtype=torch.float32).items()}
        output, _ = self.scan(tensors, backend)
        assert output.grad_fn is None

    def test_training_memory_does_not_grow_with_the_state_times_time(self, backend):
        """What is kept for the backward pass: the inputs and one state in eight or sixteen, not one a frame."""
        batch, time, d_inner, d_state = 2, 512, 32, 16
        tensors = arguments(batch, time, d_inner, d_state, dtype=torch.float32)
        kept = {}

        def note(tensor):
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.scan(tensors, backend)
        frame_elements = batch * time * d_inner
        assert frame_elements < sum(kept.values()) < frame_elements * (d_state / 8 + 6)


class TestErrors:
    @pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"])
    def test_a_wrong_shape_is_named(self, name):
        tensors = arguments(2, 6, 4, 3)
        tensors[name] = tensors[name][:-1]
        with pytest.raises(ConfigError, match=r"has shape"):
            selective_scan(**tensors)

    @pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"])
    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.complex64])
    def test_a_dtype_that_no_backend_takes_is_named_with_the_mend(self, name, dtype):
        tensors = {name: tensor.detach().float() for name, tensor in arguments(2, 6, 4, 3).items()}
        tensors[name] = tensors[name].to(dtype)
        with pytest.raises(ConfigError, match=rf"^{name} has dtype {dtype}; expected float32.* \.float\(\)"):
            selective_scan(**tensors)

    def test_a_tensor_on_another_device_is_named(self):
        tensors = arguments(2, 6, 4, 3)
        tensors["B"] = tensors["B"].detach().to("meta")
        with pytest.raises(ConfigError, match="B is on meta and the input on cpu; move them to one device"):
            selective_scan(**tensors)

    @pytest.mark.parametrize(
        ("lengths", "message"),
        [
            (torch.tensor([1, 7]), "0..6"),
            (torch.tensor([-1, 2]), "0..6"),
            (torch.tensor([1]), r"expected \(2,\)"),
            (torch.tensor([1.0, 2.0]), "integer"),
        ],
    )
    def test_wrong_lengths(self, lengths, message):
        with pytest.raises(ConfigError, match=message):
            selective_scan(**arguments(2, 6, 4, 3), lengths=lengths)

    @pytest.mark.parametrize(
        ("cu_seqlens", "message"),
        [
            (torch.tensor([0, 7]), "rising from 0 to 6"),
            (torch.tensor([0, 4, 3, 6]), "rising from 0 to 6"),
            (torch.tensor([1, 6]), "rising from 0 to 6"),
            (torch.tensor([0.0, 6.0]), "integer"),
            (torch.tensor([[0, 6]]), r"expected \(sequences \+ 1,\)"),
        ],
    )
    def test_wrong_boundaries(self, cu_seqlens, message):
        tensors = arguments(1, 6, 4, 3)
        del tensors["initial_state"]
        with pytest.raises(ConfigError, match=message):
            selective_scan(**tensors, cu_seqlens=cu_seqlens)

    def test_a_packed_batch_has_one_row(self):
        with pytest.raises(ConfigError, match="one row"):
            selective_scan(**arguments(2, 6, 4, 3), cu_seqlens=torch.tensor([0, 2, 6]))

    def test_lengths_and_boundaries_exclude_each_other(self):
        tensors = arguments(1, 6, 4, 3)
        with pytest.raises(ConfigError, match="both given"):
            selective_scan(**tensors, lengths=torch.tensor([6]), cu_seqlens=torch.tensor([0, 6]))

    def test_a_backend_that_cannot_run_says_why(self):
        with pytest.raises(BackendError, match="does not take float64"):
            selective_scan(**arguments(1, 6, 4, 3), backend="cpu")

    def test_an_unknown_backend_lists_the_known(self):
        with pytest.raises(BackendError, match=r"'cuda-magic'.*torch, reference"):
            selective_scan(**arguments(1, 2, 2, 2), backend="cuda-magic")


def test_the_report_names_one_used_backend_and_says_why_not_the_others():
    report = backend_report("cpu")
    assert [row.name for row in report if row.reason.startswith("used")] == [selected_backend("cpu")]
    assert all(row.reason.startswith(("used", "not used")) for row in report)


def test_float64_takes_the_torch_backend():
    tensors = arguments(1, 6, 4, 3)
    assert torch.equal(selective_scan(**tensors), selective_scan(**tensors, backend="torch"))


def test_the_report_names_the_instruction_set():
    if native.why_not():
        pytest.skip(f"the native library {native.why_not()}")
    (used,) = (row.reason for row in backend_report("cpu") if row.reason.startswith("used"))
    assert native.instruction_sets()[-1] in used


def test_without_the_native_library_the_report_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "absent.so")
    native._load.cache_clear()
    try:
        rows = {row.name: row for row in backend_report("cpu")}
        assert not rows["cpu"].available
        assert "no working C compiler" in rows["cpu"].reason
        assert selected_backend("cpu") == "torch"
    finally:
        monkeypatch.undo()
        native._load.cache_clear()
