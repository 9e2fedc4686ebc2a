"""Whether the candidates are right: output and every gradient beside float64, before anything is timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mambavox.benchmarks.measure import arrange, caller, swap
from mambavox.benchmarks.registry import PASSES, Candidate, Operation, Pass, Problem, Sizes, make_problem
from mambavox.errors import BackendError

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative error, norm by norm, of an output or a gradient. bfloat16 has eight bits, so that one rounding is 0.004."""


@dataclass(frozen=True)
class LeftOut:
    """A candidate that is not run, or not in a pass or at a shape.

    Attributes:
        candidate: its name.
        reason: in words.
        shape: name of the shape, or ``None`` for all of them.
        direction: the pass, or ``None`` for both.
    """

    candidate: str
    reason: str
    shape: str | None = None
    direction: Pass | None = None

    def __str__(self) -> str:
        words = (self.shape, self.direction and PASSES[self.direction])
        where = ", ".join(word for word in words if word)
        return f"{self.candidate}{where and f' ({where})'}: {self.reason}"


def check_small(
    operation: Operation,
    candidates: Sequence[Candidate],
    device: torch.device,
    dtype: torch.dtype,
    passes: Sequence[Pass],
) -> tuple[dict[Pass, list[Candidate]], list[LeftOut]]:
    """Compare every candidate with the definition in float64 at the operation's small sizes.

    Args:
        operation: of the registry.
        candidates: those that can run on the device.
        device: where they run.
        dtype: of the inputs.
        passes: forward: the output; both: all gradients, too.

    Returns:
        The candidates that can do each pass, and the peers that cannot.

    Raises:
        BackendError: a result differs, or one of our own candidates fails.
    """
    problem = make_problem(operation, operation.small, device, dtype)
    able: dict[Pass, list[Candidate]] = {}
    left_out = []
    for direction in passes:
        able[direction] = []
        expected = _exact_results(operation, operation.definition, problem, direction)
        for candidate in candidates:
            try:
                got = _results(operation, candidate, problem, direction)
            # Whatever a peer raises, it is the peer's own reason.
            except Exception as error:
                if candidate.ours:
                    raise BackendError(f"{candidate.name} fails: {error}; no figures") from error
                words = (str(error).splitlines() or [""])[0]
                reason = f"cannot do it, {type(error).__name__}: {words}"
                left_out.append(LeftOut(candidate.name, reason, direction=direction))
                continue
            _compare(f"{candidate.name} at {_words(operation.small)}", got, expected, dtype)
            able[direction].append(candidate)
    return able, left_out


def check_timed(
    operation: Operation,
    candidates: Sequence[Candidate],
    sizes: Sizes,
    device: torch.device,
    dtype: torch.dtype,
    direction: Pass,
) -> float:
    """Compare our own candidates with the chunked form in float64 at sizes that are to be timed.

    Args:
        operation: of the registry.
        candidates: of which those that are not ours are passed over.
        sizes: of the inputs.
        device: where they run.
        dtype: of the inputs.
        direction: forward: the output; both: all gradients, too.

    Returns:
        The largest relative error.

    Raises:
        BackendError: a result differs.
    """
    problem = make_problem(operation, sizes, device, dtype)
    expected = _exact_results(operation, operation.exact, problem, direction)
    return max(
        (
            _compare(
                f"{candidate.name} at {_words(sizes)}",
                _results(operation, candidate, problem, direction),
                expected,
                dtype,
            )
            for candidate in candidates
            if candidate.ours
        ),
        default=0.0,
    )


def _exact_results(
    operation: Operation, run: Callable[..., Tensor], problem: Problem, direction: Pass
) -> dict[str, Tensor]:
    exact = Problem(
        {name: tensor.detach().double().requires_grad_() for name, tensor in problem.tensors.items()},
        problem.grad_output.double(),
    )
    return _results(operation, Candidate("float64", run), exact, direction)


def _results(operation: Operation, candidate: Candidate, problem: Problem, direction: Pass) -> dict[str, Tensor]:
    """Output and gradients by name, in the definition's layout."""
    found = caller(candidate, arrange(candidate, operation, problem), direction)()
    results = dict(zip(("output", *problem.tensors), found, strict=False))
    if candidate.channels_first:
        swapped = {"output", *operation.frames}
        results = {name: swap(tensor) if name in swapped else tensor for name, tensor in results.items()}
    return results


def _compare(name: str, got: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> float:
    worst = 0.0
    for key, wanted in expected.items():
        error = ((got[key].double() - wanted).norm() / wanted.norm()).item()
        # NaN compares as false.
        if not error <= TOLERANCE[dtype]:
            what = "the output" if key == "output" else f"the gradient of {key}"
            raise BackendError(
                f"{name}: {what} differs from the definition in float64 by {error:.1e} (at most "
                f"{TOLERANCE[dtype]:g}); no figures"
            )
        worst = max(worst, error)
    return worst


def _words(sizes: Sizes) -> str:
    return ", ".join(f"{key} {size}" for key, size in sizes.items())
