"""``torch.jit.trace`` gives what the call gives, for other inputs and lengths too; ONNX by tracing is refused."""

import io
import warnings

import pytest
import torch

from mambavox.errors import ConfigError
from mambavox.nn import Mamba, Mamba2
from mambavox.ops import causal_conv1d, selective_scan, ssd_scan

D_INNER, D_STATE = 8, 4


def scan(x, backend=None, **options):
    A = -torch.arange(1.0, D_STATE + 1).expand(D_INNER, D_STATE)
    return selective_scan(x, x.sigmoid(), A, x[..., :D_STATE], x[..., -D_STATE:], backend=backend, **options)


def conv(x, **options):
    return causal_conv1d(x, torch.linspace(-1, 1, 4 * D_INNER).view(D_INNER, 4), activation="silu", **options)


def ssd(x, **options):
    heads = x.unflatten(2, (2, D_INNER // 2))
    state = x[:, :, None, :D_STATE]
    return ssd_scan(heads, heads.sigmoid().mean(-1), -torch.ones(2), state, state, chunk_size=16, **options)


def traced(module, *examples):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that the trace is sure of
        module = torch.jit.trace(module, examples)
        file = io.BytesIO()
        torch.jit.save(module, file)
        file.seek(0)
        return torch.jit.load(file)


@pytest.mark.parametrize("operation", [scan, conv, ssd])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frames", [10, 40, 100])
def test_a_trace_of_an_operation(operation, dtype, frames):
    other = torch.randn(3, frames, D_INNER, dtype=dtype)
    with torch.no_grad():
        loaded = traced(operation, torch.randn(2, 40, D_INNER, dtype=dtype))
    torch.testing.assert_close(loaded(other), operation(other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("operation", [scan, conv, ssd])
def test_a_trace_takes_lengths_and_trains(operation):
    x, lengths = torch.randn(2, 40, D_INNER), torch.tensor([40, 40])
    other, shorter = torch.randn(2, 30, D_INNER, requires_grad=True), torch.tensor([7, 30])

    def call(x, lengths):
        return operation(x, lengths=lengths)

    found, right = (function(other, shorter) for function in (traced(call, x.requires_grad_(), lengths), call))
    torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), other)[0] for y in (found, right)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [Mamba, Mamba2])
def test_a_trace_of_a_block(block):
    torch.manual_seed(0)
    model = block(32).eval()
    with torch.no_grad():
        loaded = traced(model, torch.randn(1, 50, 32))
        for frames in (20, 50, 130):
            x = torch.randn(2, frames, 32)
            torch.testing.assert_close(loaded(x), model(x), atol=1e-5, rtol=1e-4)


def test_what_a_trace_cannot_hold_is_refused():
    x = torch.randn(1, 6, D_INNER)
    with pytest.raises(ConfigError, match="'reference' cannot be traced"), torch.no_grad():
        traced(lambda x: scan(x, "reference"), x)
    bounds = torch.tensor([0, 2, 6])
    with pytest.raises(ConfigError, match="cu_seqlens cannot be traced"), torch.no_grad():
        traced(lambda x: conv(x, cu_seqlens=bounds), x.double())


@pytest.mark.parametrize("operation", [scan, conv, ssd])
@pytest.mark.filterwarnings("ignore")
def test_onnx_by_tracing_is_refused_in_words(operation):
    class Module(torch.nn.Module):
        def forward(self, x):
            return operation(x)

    pytest.importorskip("onnx")
    with pytest.raises(ConfigError, match="cannot be exported to ONNX by tracing"), torch.no_grad():
        torch.onnx.export(Module(), (torch.randn(1, 6, D_INNER),), io.BytesIO(), dynamo=False)
