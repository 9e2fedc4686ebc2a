"""The checks of tensors that the public operations share."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mambavox.errors import ConfigError

# Those that every implementation computes with or converts.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensors(device: torch.device, expected: Iterable[tuple[str, Tensor | None, tuple[int, ...], str]]) -> None:
    """Check the shape, dtype and device of each tensor that is given.

    Args:
        device: where all of them must be: that of the input.
        expected: of each its name, the tensor or ``None``, its shape in numbers and its shape in words.

    Raises:
        ConfigError: a shape, dtype or device that is not as expected; the message names the tensor.
    """
    for name, tensor, shape, words in expected:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ConfigError(f"{name} has shape {tuple(tensor.shape)}; expected {words} = {shape}")
        if tensor.dtype not in DTYPES:
            raise ConfigError(
                f"{name} has dtype {tensor.dtype}; expected float32, bfloat16, float16 or float64: convert it, "
                "with .float() for instance"
            )
        if tensor.device != device:
            raise ConfigError(f"{name} is on {tensor.device} and the input on {device}; move them to one device")


def refuse_traced_onnx(name: str) -> None:
    """Say that ONNX has no such operation, where ``torch.onnx.export(dynamo=False)`` traces it.

    Args:
        name: of the operation.

    Raises:
        ConfigError: it is exported now.
    """
    if torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export():
        raise ConfigError(
            f"{name} cannot be exported to ONNX by tracing (dynamo=False): ONNX has no such operation. Save the model "
            "with torch.jit.trace or torch.export; for a recogniser that runs as a stream there is mambavox export"
        )
