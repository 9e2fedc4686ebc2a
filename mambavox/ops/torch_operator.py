"""An operation with kernels of its own as one operator of torch: registration, autograd, and a short way to call it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mambavox.ops.checks import refuse_traced_onnx

# Inputs that are no tensors, and all that the dispatcher would hand on as it is.
_SETTINGS = (bool, str)
_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None), *_SETTINGS))


class Operator:
    """``torch.ops.mambavox.<name>`` and ``<name>_backward``, opaque to torch: compiled, exported and counted as such.

    The operator returns the output, the final state and, where it needs any, tensors kept for the backward pass. Its
    backward pass takes the gradients of the first two (``None`` for a final state that has none), the inputs and what
    was kept, and returns the gradient of each input that can have one, ``None`` for a tensor that was not given.

    Args:
        name: of the operator; also what the error of a second derivative calls it.
        inputs: their schema, in torch's words.
        outputs: the schema of what is returned.
        differentiable: positions of the inputs that have gradients.
        forward: from the inputs to the outputs.
        backward: from ``(grad_y, grad_final_state, *inputs, kept)`` to the gradients, in the order of
            ``differentiable``.
        fake: from the inputs to empty tensors of the outputs' shapes and dtypes.
        other_way: what has one, for the error of a second derivative.
    """

    def __init__(
        self,
        name: str,
        inputs: str,
        outputs: str,
        differentiable: Sequence[int],
        forward: Callable[..., tuple[Tensor, ...]],
        backward: Callable[..., Sequence[Tensor | None]],
        fake: Callable[..., tuple[Tensor, ...]],
        other_way: str,
    ) -> None:
        self.name = name
        self.differentiable = differentiable
        self.forward = forward
        self.backward = backward
        # A class of its own: profiles and grad_fn show its name.
        self._call: Any = type(name, (_Call,), {})
        full_name = f"mambavox::{name}"
        torch.library.define(full_name, f"({inputs}) -> ({outputs})")
        torch.library.define(
            f"{full_name}_backward",
            f"(Tensor grad_y, Tensor? grad_final_state, {inputs}, Tensor[] kept) -> Tensor[]",
        )
        self.forward_operator = getattr(torch.ops.mambavox, name)
        self.backward_operator = getattr(torch.ops.mambavox, f"{name}_backward")

        def all_gradients(*arguments: Any) -> list[Tensor]:
            # An operator returns tensors only: an empty one stands for a tensor that was not given.
            gradients = backward(*arguments)
            return [arguments[0].new_empty(0) if gradient is None else gradient for gradient in gradients]

        def fake_gradients(grad_y: Tensor, grad_final_state: Tensor | None, *inputs: Any) -> list[Tensor]:
            tensors = [inputs[position] for position in differentiable]
            return [grad_y.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in tensors]

        def no_second_derivative(ctx: Any, *_: Any) -> None:
            raise RuntimeError(f"{name} has no second derivative; {other_way}")

        torch.library.impl(full_name, "default", forward)
        torch.library.impl(f"{full_name}_backward", "default", all_gradients)
        torch.library.register_fake(full_name, fake)
        torch.library.register_fake(f"{full_name}_backward", fake_gradients)
        torch.library.register_autograd(full_name, self.gradients, setup_context=_save)
        torch.library.register_autograd(f"{full_name}_backward", no_second_derivative)

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Run it; in ``torch.compile`` call ``torch.ops.mambavox.<name>`` instead.

        Raises:
            ConfigError: it is exported to ONNX by tracing.
        """
        if is_tracing():
            refuse_traced_onnx(self.name)
            return self.forward_operator(*inputs)
        if not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active() and _unwatched(inputs):
            # A step of a stream, over in less time than what autograd would note down about it.
            return self.forward(*inputs)
        return self._call.apply(self, *inputs)

    def gradients(
        self, ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        """Gradient of each input."""
        saved = ctx.saved_tensors
        inputs = [value if tensor is None else tensor for tensor, value in zip(saved, ctx.settings, strict=False)]
        kept = list(saved[len(inputs) :])
        above = torch.zeros_like(inputs[0]) if grad_y is None else grad_y
        # Only the operator knows that it has no second derivative.
        direct = not torch.is_grad_enabled() and _unwatched((above, grad_state, *inputs))
        found = (self.backward if direct else self.backward_operator)(above, grad_state, *inputs, kept)
        result: list[Tensor | None] = [None] * len(inputs)
        for position, gradient in zip(self.differentiable, found, strict=True):
            if inputs[position] is not None:
                result[position] = gradient
        return tuple(result)


def _unwatched(inputs: Sequence[Any]) -> bool:
    """Whether nothing that torch dispatches to, a mode, a trace or a subclass of ``Tensor``, would see the call."""
    return not is_in_torch_dispatch_mode() and not is_tracing() and all(type(value) in _PLAIN for value in inputs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    kept = output[2:]
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(*[None if isinstance(value, _SETTINGS) else value for value in inputs], *kept)
    ctx.settings = [value if isinstance(value, _SETTINGS) else None for value in inputs]


class _Call(torch.autograd.Function):
    """An operator's call without the autograd that torch makes for it, and where possible without the dispatcher.

    Both take longer than the scan of a short sequence.
    """

    @staticmethod
    def forward(ctx: Any, operator: Operator, *inputs: Any) -> tuple[Tensor, ...]:
        output = (operator.forward if _unwatched(inputs) else operator.forward_operator)(*inputs)
        _save(ctx, inputs, output)
        ctx.operator = operator
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return None, *ctx.operator.gradients(ctx, *grads)
