import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambavox.errors import BackendError, ConfigError
from mambavox.ops import backend_report, selected_backend, selective_scan, selective_scan_reference
from mambavox.ops.scan_torch import selective_scan_torch

TIMES = [1, 2, 7, 8, 9, 63, 500, 1000]
FAST_BACKENDS = ["torch"]


def arguments(batch, time, d_inner, d_state, dtype=torch.float64, seed=0, decay=4.0):
    """Every tensor argument of the scan, as a leaf that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    return {
        "x": draw(batch, time, d_inner),
        "dt": draw(batch, time, d_inner),
        "A": (-decay * torch.rand(d_inner, d_state, generator=generator, dtype=dtype)).requires_grad_(),
        "B": draw(batch, time, d_state),
        "C": draw(batch, time, d_state),
        "D": draw(d_inner),
        "z": draw(batch, time, d_inner),
        "dt_bias": draw(d_inner),
        "initial_state": draw(batch, d_inner, d_state),
    }


def outputs_and_gradients(tensors, backend, lengths=None):
    """Output, final state, and the gradient of a loss that weighs every element of both differently."""
    output, state = selective_scan(
        **tensors, dt_softplus=True, lengths=lengths, return_final_state=True, backend=backend
    )
    valid = output if lengths is None else torch.cat([row[:n] for row, n in zip(output, lengths.tolist(), strict=True)])
    loss = (valid * torch.arange(valid.numel()).view_as(valid).cos()).sum()
    loss = loss + (state * torch.arange(state.numel()).view_as(state).sin()).sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    return {"output": output, "final_state": state, **dict(zip(tensors, gradients, strict=True))}


def assert_same(actual, expected, relative):
    for name, want in expected.items():
        got = actual[name]
        assert torch.isfinite(got).all(), name
        error = (got.double() - want.double()).abs().max().item() if want.numel() else 0.0
        scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
        assert error <= relative * scale, f"{name}: {error:.2e} of {scale:.2e}"


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


@pytest.mark.parametrize("backend", FAST_BACKENDS)
class TestParityWithTheDefinition:
    @pytest.mark.parametrize("time", TIMES)
    def test_float64(self, backend, time):
        tensors = arguments(2, time, 5, 4)
        assert_same(
            outputs_and_gradients(tensors, backend),
            outputs_and_gradients(tensors, "reference"),
            relative=1e-11,
        )

    @pytest.mark.parametrize("d_state", [1, 4, 8, 16, 24, 64])
    def test_state_sizes(self, backend, d_state):
        tensors = arguments(2, 63, 6, d_state)
        assert_same(
            outputs_and_gradients(tensors, backend),
            outputs_and_gradients(tensors, "reference"),
            relative=1e-11,
        )

    @pytest.mark.parametrize("time", [1, 63, 500])
    def test_float32_is_within_1e_5_of_float64(self, backend, time):
        tensors = arguments(2, time, 24, 16, dtype=torch.float32)
        exact = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
        assert_same(outputs_and_gradients(tensors, backend), outputs_and_gradients(exact, "reference"), relative=1e-5)

    @pytest.mark.parametrize("time", [1, 9, 63, 500])
    def test_ragged_lengths(self, backend, time):
        tensors = arguments(5, time, 3, 4)
        lengths = torch.tensor([0, 1, time // 2, time - 1, time])
        assert_same(
            outputs_and_gradients(tensors, backend, lengths),
            outputs_and_gradients(tensors, "reference", lengths),
            relative=1e-11,
        )

    def test_strong_decay_underflows_to_zero(self, backend):
        tensors = arguments(2, 200, 4, 4, dtype=torch.float32, decay=80.0)
        exact = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
        assert_same(outputs_and_gradients(tensors, backend), outputs_and_gradients(exact, "reference"), relative=1e-5)

    def test_uninitialised_memory_is_never_read(self, backend):
        tensors = arguments(2, 37, 5, 4)
        expected = outputs_and_gradients(tensors, "reference")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # new memory holds NaN
        try:
            assert torch.empty(3).isnan().all(), "this torch no longer poisons new memory: the test shows nothing"
            assert_same(outputs_and_gradients(tensors, backend), expected, relative=1e-11)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_channel_blocks_cover_every_channel(self, backend):
        tensors = arguments(2, 130, 301, 16, dtype=torch.float32)
        assert_same(
            outputs_and_gradients(tensors, backend),
            outputs_and_gradients(tensors, "reference"),
            relative=1e-5,
        )

    @settings(max_examples=60, deadline=None)
    @given(
        batch=st.integers(1, 3),
        time=st.integers(1, 70),
        d_inner=st.integers(1, 9),
        d_state=st.integers(1, 9),
        seed=st.integers(0, 10_000),
        left_out=st.sets(st.sampled_from(["D", "z", "dt_bias", "initial_state"])),
        data=st.data(),
    )
    def test_any_shape(self, backend, batch, time, d_inner, d_state, seed, left_out, data):
        tensors = arguments(batch, time, d_inner, d_state, seed=seed)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
        lengths = data.draw(
            st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch).map(torch.tensor)
        )
        assert_same(
            outputs_and_gradients(tensors, backend, lengths),
            outputs_and_gradients(tensors, "reference", lengths),
            relative=1e-10,
        )


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
class TestLengthsAndState:
    def test_no_frames_at_all(self, backend):
        tensors = arguments(2, 0, 4, 3)
        output, state = selective_scan(**tensors, return_final_state=True, backend=backend)
        assert output.shape == (2, 0, 4)
        assert torch.equal(state, tensors["initial_state"])

    def test_padding_may_hold_anything_even_nan(self, backend):
        tensors = arguments(3, 20, 4, 3)
        lengths = torch.tensor([0, 7, 20])
        clean = outputs_and_gradients(tensors, backend, lengths)
        dirty = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name in ("x", "dt", "B", "C", "z"):
            for row, length in enumerate(lengths.tolist()):
                dirty[name][row, length:] = float("nan")
        output, state = selective_scan(
            **dirty, dt_softplus=True, lengths=lengths, return_final_state=True, backend=backend
        )
        torch.testing.assert_close(output, clean["output"])
        torch.testing.assert_close(state, clean["final_state"])

    def test_frames_beyond_the_length_are_zero_and_the_state_stands_still(self, backend):
        tensors = arguments(2, 12, 4, 3)
        output, state = selective_scan(
            **tensors, dt_softplus=True, lengths=torch.tensor([0, 5]), return_final_state=True, backend=backend
        )
        assert (output[0] == 0).all()
        assert (output[1, 5:] == 0).all()
        assert (output[1, :5] != 0).any()
        torch.testing.assert_close(state[0], tensors["initial_state"][0])

    def test_a_row_alone_gives_what_it_gives_in_a_batch(self, backend):
        tensors = arguments(2, 30, 4, 3)
        output, state = selective_scan(
            **tensors, dt_softplus=True, lengths=torch.tensor([13, 30]), return_final_state=True, backend=backend
        )
        alone = {
            name: tensor[:1, :13] if tensor.dim() == 3 and name != "initial_state" else tensor
            for name, tensor in tensors.items()
        }
        alone["initial_state"] = tensors["initial_state"][:1]
        expected, expected_state = selective_scan(**alone, dt_softplus=True, return_final_state=True, backend=backend)
        torch.testing.assert_close(output[:1, :13], expected)
        torch.testing.assert_close(state[:1], expected_state)

    @pytest.mark.parametrize("cut", [0, 1, 8, 17, 39, 40])
    def test_a_sequence_cut_anywhere_gives_the_uncut_result(self, backend, cut):
        tensors = {name: tensor.detach().float() for name, tensor in arguments(2, 40, 4, 3).items()}
        expected, expected_state = selective_scan(**tensors, dt_softplus=True, return_final_state=True, backend=backend)
        fixed = {name: tensors[name] for name in ("A", "D", "dt_bias")}
        state, pieces = tensors["initial_state"], []
        for part in (slice(0, cut), slice(cut, 40)):
            moving = {name: tensors[name][:, part] for name in ("x", "dt", "B", "C", "z")}
            piece, state = selective_scan(
                **moving, **fixed, dt_softplus=True, initial_state=state, return_final_state=True, backend=backend
            )
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state, expected_state, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_a_float32_state(self, backend, dtype):
        tensors = arguments(2, 50, 8, 4, dtype=torch.float32)
        rounded = {name: tensor.detach().to(dtype) for name, tensor in tensors.items()}
        output, state = selective_scan(**rounded, dt_softplus=True, return_final_state=True, backend=backend)
        exact, exact_state = selective_scan(
            **{name: tensor.double() for name, tensor in rounded.items()},
            dt_softplus=True,
            return_final_state=True,
            backend="reference",
        )
        assert output.dtype == dtype
        assert state.dtype == torch.float32
        torch.testing.assert_close(state.double(), exact_state, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.double(), exact, rtol=1e-2, atol=1e-2)


def test_training_memory_does_not_grow_with_the_state_times_time():
    """What is kept for the backward pass: the inputs and one state in eight, not one a frame."""
    batch, time, d_inner, d_state = 2, 512, 32, 16
    tensors = arguments(batch, time, d_inner, d_state, dtype=torch.float32)
    kept = {}

    def note(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        selective_scan_torch(**tensors, dt_softplus=True)
    frame_elements = batch * time * d_inner
    assert sum(kept.values()) < frame_elements * (d_state / 8 + 10)
    assert sum(kept.values()) < frame_elements * d_state


def test_second_derivatives_are_refused_not_wrong():
    tensors = arguments(1, 9, 2, 2)
    (gradient,) = torch.autograd.grad(selective_scan(**tensors, backend="torch").sum(), tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class TestErrors:
    @pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"])
    def test_a_wrong_shape_is_named(self, name):
        tensors = arguments(2, 6, 4, 3)
        tensors[name] = tensors[name][:-1]
        with pytest.raises(ConfigError, match=r"has shape"):
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

    def test_an_unknown_backend_lists_the_known(self):
        with pytest.raises(BackendError, match=r"'cuda-magic'.*torch, reference"):
            selective_scan(**arguments(1, 2, 2, 2), backend="cuda-magic")


def test_the_report_names_one_used_backend_and_says_why_not_the_others():
    report = backend_report("cpu")
    assert [row.name for row in report if row.reason.startswith("used")] == [selected_backend("cpu")]
    assert all(row.reason.startswith(("used", "not used")) for row in report)
