"""One run of the benchmark: parity everywhere, then the machine's rates, then time and memory shape by shape."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mambavox.benchmarks.limits import limit, measure_rates
from mambavox.benchmarks.machine import find_dtype, machine_facts, working_threads
from mambavox.benchmarks.measure import arrange, caller, interleave
from mambavox.benchmarks.memory import peak_extra_bytes
from mambavox.benchmarks.operation_report import Measurement, OperationReport
from mambavox.benchmarks.parity import LeftOut, check_small, check_timed
from mambavox.benchmarks.registry import (
    OPERATIONS,
    PASSES,
    Candidate,
    Operation,
    Pass,
    Sizes,
    make_problem,
)
from mambavox.devices import find_device
from mambavox.errors import ConfigError


def benchmark(
    name: str,
    shapes: Sequence[str] | None = None,
    threads: int | None = None,
    repeats: int = 7,
    passes: Sequence[str] = tuple(PASSES),
    dtype: str = "float32",
    device: str = "cpu",
    memory: bool = True,
    console: Console | None = None,
) -> OperationReport:
    """Run an operation beside its peers.

    Nothing is timed before every candidate has agreed with the definition at small sizes, and our own with float64 at
    every shape that is to be timed.

    Args:
        name: scan, conv or ssd.
        shapes: names of shapes of the operation; all of them where not given.
        threads: that work; torch's present number where not given.
        repeats: repetitions, at most; a candidate that takes a minute makes fewer.
        passes: of forward, both.
        dtype: float32 or bfloat16.
        device: cpu or cuda.
        memory: also measure the peak memory, each time in a process of its own.
        console: where progress and the figures go; ``None`` is silent.

    Raises:
        ConfigError: an unknown name, or a device that is not there.
        BackendError: a candidate is wrong; no figure was printed.
    """
    operation = _one_of("operation", name, OPERATIONS)
    chosen = {
        shape: _one_of("shapes", shape, operation.shapes) for shape in (operation.shapes if shapes is None else shapes)
    }
    directions: list[Pass] = [_one_of("passes", direction, {key: key for key in PASSES}) for direction in passes]
    if not chosen or not directions:
        raise ConfigError(f"{'passes' if chosen else 'shapes'} is empty; expected one at least")
    if repeats < 1:
        raise ConfigError(f"repeats={repeats}; expected at least 1")
    place, element = find_device(device), find_dtype(dtype)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal,
    )
    with working_threads(threads), bar:
        run = _Run(name, operation, place, element, repeats, memory, bar, console)
        return run.report(chosen, directions)


def _one_of(argument: str, given: str, known: Mapping[str, Any]) -> Any:
    if given not in known:
        raise ConfigError(f"{argument}: there is no {given!r}; expected {', '.join(known)}")
    return known[given]


class _Run:
    """What all steps of one run share."""

    def __init__(
        self,
        name: str,
        operation: Operation,
        device: torch.device,
        dtype: torch.dtype,
        repeats: int,
        memory: bool,
        bar: Progress,
        console: Console | None,
    ) -> None:
        self.name, self.operation = name, operation
        self.device, self.dtype = device, dtype
        self.repeats, self.memory = repeats, memory
        self.bar, self.console = bar, console
        self.threads = torch.get_num_threads()
        self.left_out: list[LeftOut] = []

    def report(self, shapes: Mapping[str, Sizes], passes: Sequence[Pass]) -> OperationReport:
        """All steps, in their order."""
        runnable = []
        for candidate in self.operation.candidates:
            reason = candidate.why_not(self.device)
            if reason is None:
                runnable.append(candidate)
            else:
                self.leave_out(LeftOut(candidate.name, reason))
        parities, able = self.check(runnable, shapes, passes)
        rates = measure_rates(self.device, self.threads)
        measurements = []
        for shape, sizes in shapes.items():
            for direction in passes:
                candidates = self.short_enough(able[direction], shape, sizes, direction)
                measurement = Measurement(
                    shape,
                    sizes,
                    direction,
                    parities[shape, direction],
                    limit(self.operation, sizes, direction, self.dtype, rates),
                    self.times(candidates, shape, sizes, direction),
                    self.peaks(candidates, shape, sizes) if self.memory and direction == "both" else {},
                )
                measurements.append(measurement)
                for name, timing in measurement.timings.items():
                    figure = f"{1e3 * timing.median:.4g} ms, {measurement.over_limit(name):.3g} x limit"
                    self.say(f"{shape}, {PASSES[direction]}: {name} {figure}")
        return OperationReport(
            self.operation.name,
            machine_facts(self.device, self.dtype),
            self.dtype.itemsize,
            rates,
            measurements,
            self.left_out,
        )

    def check(
        self, candidates: Sequence[Candidate], shapes: Mapping[str, Sizes], passes: Sequence[Pass]
    ) -> tuple[dict[tuple[str, Pass], float], dict[Pass, list[Candidate]]]:
        """Parity at the small sizes and at every timed shape: errors, and the candidates that can do each pass."""
        task = self.bar.add_task("comparing with the definition", total=1 + len(shapes) * len(passes))
        able, unable = check_small(self.operation, candidates, self.device, self.dtype, passes)
        for item in unable:
            self.leave_out(item)
        self.bar.advance(task)
        errors = {}
        for shape, sizes in shapes.items():
            for direction in passes:
                errors[shape, direction] = check_timed(
                    self.operation, able[direction], sizes, self.device, self.dtype, direction
                )
                self.bar.advance(task)
        self.bar.remove_task(task)
        return errors, able

    def short_enough(
        self, candidates: Sequence[Candidate], shape: str, sizes: Sizes, direction: Pass
    ) -> list[Candidate]:
        """The candidates that do not take minutes."""
        kept = []
        for candidate in candidates:
            reason = candidate.too_long(sizes, direction, self.device)
            if reason is None:
                kept.append(candidate)
            else:
                self.leave_out(LeftOut(candidate.name, reason, shape, direction))
        return kept

    def times(self, candidates: Sequence[Candidate], shape: str, sizes: Sizes, direction: Pass) -> Any:
        """Timings of the candidates by name."""
        problem = make_problem(self.operation, sizes, self.device, self.dtype)
        calls = {
            candidate.name: caller(candidate, arrange(candidate, self.operation, problem), direction)
            for candidate in candidates
        }
        total = len(calls) * (self.repeats + 1)
        task = self.bar.add_task(f"{shape}, {PASSES[direction]}", total=total)
        timings = interleave(calls, self.device, self.repeats, progress=lambda: self.bar.advance(task))
        self.bar.remove_task(task)
        return timings

    def peaks(self, candidates: Sequence[Candidate], shape: str, sizes: Sizes) -> dict[str, int]:
        """Peak memory of the candidates by name."""
        found = {}
        for candidate in self.bar.track(candidates, description=f"{shape}, memory"):
            peak = peak_extra_bytes(self.name, candidate.name, sizes, self.device, self.dtype, self.threads)
            if isinstance(peak, str):
                self.leave_out(LeftOut(f"{candidate.name}, memory", peak, shape))
            else:
                found[candidate.name] = peak
        return found

    def leave_out(self, item: LeftOut) -> None:
        """Note it, and say so."""
        self.left_out.append(item)
        self.say(f"left out: {item}")

    def say(self, line: str) -> None:
        """Print a line, above the progress bar."""
        if self.console is not None:
            self.console.print(line, markup=False)
