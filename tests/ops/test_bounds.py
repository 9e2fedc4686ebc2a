"""No lengths or boundaries make an operation read or write outside its tensors, compiled ones neither."""

import pytest
import torch

from mambavox.errors import ConfigError
from mambavox.lengths import check_cu_seqlens, check_lengths
from mambavox.ops import native

from .test_tracing import conv, scan, ssd

BAD = {
    "lengths": [[5, 400_000], [5, -400_000], [-1, 65]],
    "cu_seqlens": [[0, 400_000, 64], [0, -400_000, 64], [0, 40, 20, 64], [9, 20, 30], [0, 90, 10, 64]],
}
CASES = [(name, numbers) for name, given in BAD.items() for numbers in given]
OPERATIONS = {"scan": scan, "conv": conv, "ssd": ssd}


def call(operation, x, **given):
    y, state = OPERATIONS[operation](x, return_final_state=True, **given)
    return y, state


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("name", "numbers"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_with_bad_numbers_is_defined(operation, name, numbers, dtype):
    if operation == "conv" and name == "cu_seqlens" and dtype == torch.float64:
        pytest.skip("packed convolutions in float64 are not compiled whole")
    x = torch.randn(2 if name == "lengths" else 1, 64, 8, dtype=dtype, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(call, backend="aot_eager")
    given = torch.tensor(numbers)
    y, state = compiled(operation, x, **{name: given})
    (y.sum() + state.sum()).backward()
    assert y.isfinite().all() and state.isfinite().all() and x.grad.isfinite().all()
    # What it is: that of the nearest numbers that can be.
    if name == "lengths":
        nearest = given.clamp(0, 64)
    else:
        nearest = torch.tensor([0, *given[1:-1].clamp(0, 64).cummax(0).values, 64])
    torch.testing.assert_close(y, call(operation, x, **{name: nearest})[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("name", "numbers"), CASES)
def test_they_are_refused_where_they_can_be_seen(operation, name, numbers):
    x = torch.randn(2 if name == "lengths" else 1, 64, 8)
    with pytest.raises(ConfigError, match=name):
        call(operation, x, **{name: torch.tensor(numbers)})


@pytest.mark.parametrize(("name", "numbers"), CASES)
@pytest.mark.skipif(native.why_not() is not None, reason="the native library is not compiled here")
def test_the_kernels_own_wrapper_refuses_them(name, numbers):
    """An exported graph calls the operator itself."""
    x = torch.randn(2 if name == "lengths" else 1, 64, 8)
    given = torch.tensor(numbers)
    rows = (given, None) if name == "lengths" else (None, given)
    with pytest.raises(ConfigError, match=name):
        torch.ops.mambavox.causal_conv1d(x, torch.ones(8, 4), None, None, *rows, False, False)


def test_good_numbers_are_left_alone_when_compiled():
    numbers = torch.tensor([0, 5, 5, 64])
    compiled = torch.compile(check_cu_seqlens, backend="eager")
    assert compiled(numbers, 1, 64).tolist() == numbers.tolist()
    compiled = torch.compile(check_lengths, backend="eager")
    assert compiled(torch.tensor([0, 64], dtype=torch.int32), 2, 64).tolist() == [0, 64]
