"""A linear layer without gradients on oneDNN, which where MKL is held to half the processor is twice as fast."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# Elements of a weight below which the call costs more than it gains.
_LARGE = 1 << 19


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, where it is a plain and large ``nn.Linear`` in float32 on the CPU by oneDNN.

    torch gives float32 products to MKL, which on AMD processors does without their widest vectors. Of a layer that is
    wrapped, hooked, traced or trained nothing is bypassed.

    Args:
        layer: of any kind.
        x: its input, ``(..., in_features)``.
    """
    if type(layer) is not nn.Linear or not _plain(layer, x):
        return layer(x)
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")


def _plain(layer: nn.Linear, x: Tensor) -> bool:
    weight = layer.weight
    if weight.numel() < _LARGE or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    return (
        type(weight) is nn.Parameter
        and x.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not is_in_torch_dispatch_mode()
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
