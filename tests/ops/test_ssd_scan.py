from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambavox.errors import ConfigError
from mambavox.ops.ssd_reference import ssd_scan_reference
from mambavox.ops.ssd_scan import ssd_scan

TIMES = [1, 2, 63, 64, 65, 500]
MOVING = ("x", "dt", "B", "C", "z")


def arguments(
    batch=2,
    time=20,
    heads=4,
    head_dim=3,
    groups=2,
    d_state=5,
    dtype=torch.float64,
    seed=0,
    decay=4.0,
    states=None,
    wide_D=False,
):
    """Every tensor argument of the scan, as a leaf that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    return {
        "x": draw(batch, time, heads, head_dim),
        "dt": draw(batch, time, heads),
        "A": (-decay * torch.rand(heads, generator=generator, dtype=dtype)).requires_grad_(),
        "B": draw(batch, time, groups, d_state),
        "C": draw(batch, time, groups, d_state),
        "D": draw(heads, head_dim) if wide_D else draw(heads),
        "z": draw(batch, time, heads, head_dim),
        "dt_bias": draw(heads),
        "initial_state": draw(batch if states is None else states, heads, head_dim, d_state),
    }


def chunked(**options):
    return ssd_scan(**options, return_final_state=True)


def outputs_and_gradients(scan, tensors, **options):
    """Output, final state, and the gradient of a loss that weighs every element of both differently."""
    output, state = scan(**tensors, dt_softplus=True, **options)
    loss = (output * torch.arange(output.numel()).view_as(output).cos()).sum()
    loss = loss + (state * torch.arange(state.numel()).view_as(state).sin()).sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    return {"output": output, "final_state": state, **dict(zip(tensors, gradients, strict=True))}


def assert_same(actual, expected, relative):
    for name, want in expected.items():
        got = actual[name]
        assert got.shape == want.shape, name
        assert torch.isfinite(got).all(), name
        error = (got.double() - want.double()).abs().max().item() if want.numel() else 0.0
        scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
        assert error <= relative * scale, f"{name}: {error:.2e} of {scale:.2e}"


def assert_agrees_with_the_definition(tensors, relative=1e-11, chunk_size=64, **options):
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    assert_same(
        outputs_and_gradients(chunked, tensors, chunk_size=chunk_size, **options),
        outputs_and_gradients(ssd_scan_reference, exact, **options),
        relative,
    )


class TestDefinition:
    @pytest.mark.parametrize("reverse", [False, True])
    def test_gradients_are_those_of_finite_differences(self, reverse):
        tensors = arguments(2, 4, 2, 2, 1, 2)
        lengths = torch.tensor([3, 4])

        def scan(*values):
            return ssd_scan_reference(
                **dict(zip(tensors, values, strict=True)), dt_softplus=True, lengths=lengths, reverse=reverse
            )

        assert torch.autograd.gradcheck(scan, tuple(tensors.values()))

    def test_one_channel_by_hand(self):
        one = torch.ones(1, 2, 1, 1, dtype=torch.float64)
        half, quarter = (torch.full((1,), value, dtype=torch.float64) for value in (-0.5, 0.25))
        output, state = ssd_scan_reference(one * 3, one[..., 0] * 2, half, one, one, D=quarter)
        first = 2 * 3
        second = torch.tensor(-1.0, dtype=torch.float64).exp() * first + 6
        torch.testing.assert_close(output.flatten(), torch.tensor([first + 0.75, second + 0.75]).double())
        torch.testing.assert_close(state.flatten(), second[None])

    def test_the_first_heads_use_the_first_group(self):
        tensors = {name: tensor.detach() for name, tensor in arguments(1, 6, 4, 3, 2, 5).items()}
        both = ssd_scan_reference(**tensors)[0]
        per_head = {name: tensors[name][..., :2] for name in ("dt", "A", "D", "dt_bias")}
        per_head |= {name: tensors[name][:, :, :2] for name in ("x", "z")}
        first = {name: tensors[name][:, :, :1] for name in ("B", "C")}
        alone = ssd_scan_reference(**per_head, **first, initial_state=tensors["initial_state"][:, :2])[0]
        torch.testing.assert_close(both[:, :, :2], alone)

    def test_reverse_is_the_scan_of_the_reversed_row(self):
        tensors = arguments(1, 9)
        flipped = {name: tensor.flip(1) if name in MOVING else tensor for name, tensor in tensors.items()}
        output, state = ssd_scan_reference(**tensors, reverse=True)
        expected, expected_state = ssd_scan_reference(**flipped)
        torch.testing.assert_close(output, expected.flip(1))
        torch.testing.assert_close(state, expected_state)


class TestParityWithTheDefinition:
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("time", TIMES)
    def test_float64(self, time, reverse):
        assert_agrees_with_the_definition(arguments(time=time), reverse=reverse)

    @pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (6, 8, 1, 16), (6, 4, 6, 3), (8, 5, 2, 64), (3, 64, 3, 128)])
    def test_heads_groups_and_states(self, sizes):
        assert_agrees_with_the_definition(arguments(2, 70, *sizes))

    @pytest.mark.parametrize("time", [1, 63, 65, 500])
    def test_float32_is_within_1e_5_of_float64(self, time):
        tensors = arguments(2, time, 4, 16, 2, 16, dtype=torch.float32)
        assert_agrees_with_the_definition(tensors, relative=1e-5)

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("time", [1, 9, 65, 200])
    def test_ragged_lengths(self, time, reverse):
        lengths = torch.tensor([0, 1, time // 2, time - 1, time])
        assert_agrees_with_the_definition(arguments(5, time), lengths=lengths, reverse=reverse, chunk_size=16)

    def test_a_skip_weight_for_each_channel(self):
        assert_agrees_with_the_definition(arguments(wide_D=True))

    def test_strong_decay_underflows_to_zero(self):
        assert_agrees_with_the_definition(arguments(time=200, dtype=torch.float32, decay=80.0), relative=1e-5)

    @pytest.mark.parametrize("sizes", [(0, 20, 4, 3), (2, 20, 0, 3), (2, 20, 4, 0)])
    def test_no_rows_heads_or_channels_at_all(self, sizes):
        assert_agrees_with_the_definition(arguments(*sizes))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_strong_decay_leaves_the_weak_ones_beside_it_exact(self, reverse):
        """The sum of ``dt * A`` over the chunk is 4,500 here: differences of it are good to 5e-4 in float32."""
        tensors = arguments(1, 64, dtype=torch.float32, decay=0.0)
        frames = torch.arange(64)
        strong = frames % 8 != 0 if reverse else frames < 56
        tensors["A"] = torch.full((4,), -1.0).requires_grad_()
        tensors["dt"] = torch.where(strong, 80.0, 0.05).view(1, 64, 1).repeat(1, 1, 4).requires_grad_()
        assert_agrees_with_the_definition(tensors, relative=2e-6, reverse=reverse)

    def test_uninitialised_memory_is_never_read(self):
        tensors = arguments(1, 37, states=3)
        cu_seqlens = torch.tensor([0, 5, 20, 37])
        expected = outputs_and_gradients(ssd_scan_reference, tensors, cu_seqlens=cu_seqlens)
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # new memory holds NaN
        try:
            assert torch.empty(3).isnan().all(), "this torch no longer poisons new memory: the test shows nothing"
            got = outputs_and_gradients(chunked, tensors, cu_seqlens=cu_seqlens, chunk_size=8)
        finally:
            torch.use_deterministic_algorithms(False)
        assert_same(got, expected, relative=1e-11)

    @settings(max_examples=60, deadline=None)
    @given(
        batch=st.integers(1, 3),
        time=st.integers(1, 40),
        groups=st.integers(1, 3),
        heads_of_a_group=st.integers(1, 3),
        head_dim=st.integers(1, 5),
        d_state=st.integers(1, 5),
        chunk_size=st.integers(1, 50),
        reverse=st.booleans(),
        seed=st.integers(0, 10_000),
        left_out=st.sets(st.sampled_from(["D", "z", "dt_bias", "initial_state"])),
        rows=st.sampled_from(["full", "lengths", "packed"]),
        data=st.data(),
    )
    def test_any_shape(
        self,
        batch,
        time,
        groups,
        heads_of_a_group,
        head_dim,
        d_state,
        chunk_size,
        reverse,
        seed,
        left_out,
        rows,
        data,
    ):
        options, states = {}, batch
        if rows == "lengths":
            frames = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
            options = {"lengths": torch.tensor(frames)}
        if rows == "packed":
            batch, cuts = 1, sorted(data.draw(st.lists(st.integers(0, time), max_size=4)))
            options, states = {"cu_seqlens": torch.tensor([0, *cuts, time])}, len(cuts) + 1
        tensors = arguments(batch, time, groups * heads_of_a_group, head_dim, groups, d_state, seed=seed, states=states)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
        assert_agrees_with_the_definition(tensors, 1e-10, chunk_size, reverse=reverse, **options)


@pytest.mark.parametrize("scan", [ssd_scan_reference, chunked])
class TestLengthsAndState:
    def test_no_frames_at_all(self, scan):
        tensors = arguments(2, 0)
        output, state = scan(**tensors)
        assert output.shape == (2, 0, 4, 3)
        assert torch.equal(state, tensors["initial_state"])

    @pytest.mark.parametrize("reverse", [False, True])
    def test_padding_may_hold_anything_even_nan(self, scan, reverse):
        tensors = arguments(3, 20)
        lengths = torch.tensor([0, 7, 20])
        clean = outputs_and_gradients(scan, tensors, lengths=lengths, reverse=reverse)
        dirty = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name in MOVING:
            dirty[name][0], dirty[name][1, 7:] = float("nan"), float("nan")
        dirty = {name: tensor.requires_grad_() for name, tensor in dirty.items()}
        got = outputs_and_gradients(scan, dirty, lengths=lengths, reverse=reverse)
        for name, want in clean.items():
            assert torch.equal(got[name], want), name

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_row_alone_gives_what_it_gives_in_a_batch(self, scan, reverse):
        tensors = arguments(3, 20)
        lengths = torch.tensor([0, 7, 20])
        output, state = scan(**tensors, lengths=lengths, reverse=reverse)
        for row, length in enumerate(lengths.tolist()):
            alone = {name: tensors[name][row : row + 1, :length] for name in MOVING}
            fixed = {name: tensors[name] for name in ("A", "D", "dt_bias")}
            expected, expected_state = scan(
                **alone, **fixed, initial_state=tensors["initial_state"][row : row + 1], reverse=reverse
            )
            torch.testing.assert_close(output[row : row + 1, :length], expected)
            torch.testing.assert_close(state[row : row + 1], expected_state)
            assert (output[row, length:] == 0).all()

    @pytest.mark.parametrize("reverse", [False, True])
    def test_packed_sequences_give_what_each_gives_alone(self, scan, reverse):
        bounds = [0, 0, 1, 40, 64, 100]
        tensors = arguments(1, 100, states=5)
        output, state = scan(**tensors, cu_seqlens=torch.tensor(bounds), reverse=reverse)
        for index, (start, end) in enumerate(pairwise(bounds)):
            alone = {name: tensors[name][:, start:end] for name in MOVING}
            fixed = {name: tensors[name] for name in ("A", "D", "dt_bias")}
            expected, expected_state = scan(
                **alone, **fixed, initial_state=tensors["initial_state"][index : index + 1], reverse=reverse
            )
            torch.testing.assert_close(output[:, start:end], expected)
            torch.testing.assert_close(state[index : index + 1], expected_state)

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, 89, 90])
    def test_a_carried_state_gives_the_uncut_result(self, scan, cut, reverse):
        tensors = {name: tensor.detach().float() for name, tensor in arguments(2, 90).items()}
        expected, expected_state = scan(**tensors, dt_softplus=True, reverse=reverse)
        fixed = {name: tensors[name] for name in ("A", "D", "dt_bias")}
        state, pieces = tensors["initial_state"], []
        parts = [slice(0, cut), slice(cut, 90)]
        for part in reversed(parts) if reverse else parts:
            moving = {name: tensors[name][:, part] for name in MOVING}
            piece, state = scan(**moving, **fixed, dt_softplus=True, initial_state=state, reverse=reverse)
            pieces.append(piece)
        joined = torch.cat(pieces[::-1] if reverse else pieces, dim=1)
        assert_same({"output": joined, "state": state}, {"output": expected, "state": expected_state}, relative=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_a_float32_state(self, scan, dtype):
        rounded = {name: tensor.detach().to(dtype) for name, tensor in arguments(2, 50).items()}
        output, state = scan(**rounded, dt_softplus=True)
        exact, exact_state = ssd_scan_reference(
            **{name: tensor.double() for name, tensor in rounded.items()}, dt_softplus=True
        )
        assert output.dtype == dtype
        assert state.dtype == torch.float32
        torch.testing.assert_close(state.double(), exact_state, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.double(), exact, rtol=1e-2, atol=1e-2)


def test_autocast_does_not_reach_the_products():
    tensors = {name: tensor.detach().float() for name, tensor in arguments(2, 70).items()}
    expected, expected_state = chunked(**tensors)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = chunked(**tensors)
    assert torch.equal(output, expected)
    assert torch.equal(state, expected_state)


def test_training_memory_does_not_grow_with_the_state_times_time():
    """What is kept for the backward pass: inputs, one state a chunk and the matrices of the chunks."""
    batch, time, heads, head_dim, d_state = 2, 512, 4, 32, 64
    tensors = arguments(batch, time, heads, head_dim, 1, d_state, dtype=torch.float32)
    kept = {}

    def note(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ssd_scan(**tensors, dt_softplus=True)
    assert sum(kept.values()) < batch * time * heads * head_dim * d_state / 3


def test_second_derivatives_are_those_of_finite_differences():
    tensors = arguments(1, 5, 2, 2, 1, 2)

    def scan(*values):
        return chunked(**dict(zip(tensors, values, strict=True)), dt_softplus=True, chunk_size=2)

    assert torch.autograd.gradgradcheck(scan, tuple(tensors.values()))


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": torch.tensor([3, 20])},
        {"cu_seqlens": torch.tensor([0, 4, 20]), "reverse": True, "chunk_size": 8},
    ],
)
def test_compiles_as_one_graph(options):
    tensors = arguments(1 if "cu_seqlens" in options else 2, 20, states=2)
    compiled = torch.compile(chunked, fullgraph=True, backend="aot_eager")
    assert_same(
        outputs_and_gradients(compiled, tensors, **options),
        outputs_and_gradients(chunked, tensors, **options),
        relative=1e-12,
    )


class TestErrors:
    @pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"])
    def test_a_wrong_shape_is_named(self, name):
        tensors = arguments()
        tensors[name] = tensors[name][:-1]
        with pytest.raises(ConfigError, match=rf"^{name} has shape"):
            ssd_scan(**tensors)

    @pytest.mark.parametrize("name", ["x", "B"])
    def test_a_missing_dimension_is_named(self, name):
        tensors = arguments()
        tensors[name] = tensors[name][0]
        with pytest.raises(ConfigError, match=rf"^{name} has shape .*expected \(batch, time, "):
            ssd_scan(**tensors)

    def test_an_integer_tensor_is_named(self):
        tensors = arguments()
        tensors["x"] = tensors["x"].detach().long()
        with pytest.raises(ConfigError, match=r"x has dtype torch\.int64"):
            ssd_scan(**tensors)

    def test_groups_that_do_not_divide_the_heads(self):
        with pytest.raises(ConfigError, match="B has 3 groups and x 4 heads"):
            ssd_scan(**arguments(groups=3))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lengths": torch.tensor([1, 21])}, r"0\.\.20"),
            ({"lengths": torch.tensor([1])}, r"expected \(2,\)"),
            ({"chunk_size": 0}, "chunk_size is 0"),
            ({"cu_seqlens": torch.tensor([0, 4, 20])}, "one row"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(ConfigError, match=message):
            ssd_scan(**arguments(), **options)

    @pytest.mark.parametrize(
        ("cu_seqlens", "message"),
        [
            (torch.tensor([0, 21, 20]), "rising from 0 to 20"),
            (torch.tensor([1, 4, 20]), "rising from 0 to 20"),
            (torch.tensor([0, 4, 19]), "rising from 0 to 20"),
            (torch.tensor([0.0, 4.0, 20.0]), "integer"),
            (torch.tensor([[0, 4, 20]]), r"expected \(sequences \+ 1,\)"),
            (torch.tensor(20), r"expected \(sequences \+ 1,\)"),
            (torch.tensor([0]), r"expected \(sequences \+ 1,\)"),
        ],
    )
    def test_wrong_cu_seqlens(self, cu_seqlens, message):
        with pytest.raises(ConfigError, match=message):
            ssd_scan(**arguments(1, states=2), cu_seqlens=cu_seqlens)

    def test_states_of_packed_sequences_are_counted(self):
        with pytest.raises(ConfigError, match=r"initial_state .*\(sequences, heads"):
            ssd_scan(**arguments(1, states=1), cu_seqlens=torch.tensor([0, 4, 20]))

    def test_lengths_and_cu_seqlens_exclude_each_other(self):
        with pytest.raises(ConfigError, match="lengths and cu_seqlens"):
            ssd_scan(**arguments(1), lengths=torch.tensor([20]), cu_seqlens=torch.tensor([0, 20]))
