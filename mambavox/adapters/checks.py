"""Does what is trained have an effect? Asked when adapters are attached, not after a training run in vain."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mambavox.adapters.hosts import dummy_inputs
from mambavox.errors import HostError

_NAMED = 6


def check_reaches_output(model: nn.Module, inputs: Mapping[str, Any] | None = None) -> None:
    """Check that every trainable tensor is connected to the model's output.

    One forward pass in evaluation mode (no dropout, no layer drop), after which the autograd graph is followed from
    the output back to the tensors. Connection is what counts, not the gradient's value: an up projection that starts
    at zero hides the tensors before it from a gradient, but not from the graph. Modes, gradients and random state
    are left as they were.

    Args:
        model: the model to be trained.
        inputs: keyword arguments of its forward; the smallest possible ones of a known host without them.

    Raises:
        HostError: a trainable tensor has no connection to the output, or nothing is trainable at all.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise HostError("nothing is trainable; expected an active adapter, or a head in modules_to_save")
    if inputs is None:
        inputs = dummy_inputs(model)
    devices = {p.device for p in trainable.values() if p.device.type == "cuda"}
    with _evaluating(model), torch.random.fork_rng(list(devices)), torch.enable_grad():
        reached = _leaves(_tensors(model(**inputs)))
    cut_off = [name for name, p in trainable.items() if id(p) not in reached]
    if cut_off:
        more = f" and {len(cut_off) - _NAMED} more" if len(cut_off) > _NAMED else ""
        raise HostError(
            f"{len(cut_off)} of {len(trainable)} trainable tensors do not reach the model's output and would never "
            f"learn: {', '.join(cut_off[:_NAMED])}{more}. The backbone bypasses the module they were attached to "
            "(WavLM's attention, for one, reads the weights of q_proj, k_proj, v_proj and out_proj without calling "
            "them); choose other target_modules, such as the feed-forward layers"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


def _leaves(outputs: Iterable[Tensor]) -> set[int]:
    """Identities of the leaf tensors in the graph behind some outputs."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen, leaves = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return leaves
