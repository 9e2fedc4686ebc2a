"""The selective scan beside its peers on this machine: medians of interleaved repetitions, and ratios.

The backends are first checked against the definition; no figure is printed on a mismatch.
Run: ``python benchmarks/scan.py [--threads 2] [--repeats 5] [--output table.md]``.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mambavox.ops import backend_report, selective_scan, selective_scan_reference

SHAPES = {  # name: (batch, d_inner, d_state, time)
    "S1-500, adapters": (8, 64, 16, 500),
    "S1-1500, adapters": (8, 64, 16, 1500),
    "S2-500, a HuBERT-size layer at 10 s": (2, 1536, 16, 500),
}


def draw(batch: int, d_inner: int, d_state: int, frames: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    return {
        "x": normal(batch, frames, d_inner),
        "dt": normal(batch, frames, d_inner),
        "A": (-16 * torch.rand(d_inner, d_state, generator=generator)).requires_grad_(),
        "B": normal(batch, frames, d_state),
        "C": normal(batch, frames, d_state),
        "D": normal(d_inner),
    }


def mambapy_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The scan as mambapy's MambaBlock calls it."""
    from mambapy.pscan import pscan

    dt = torch.nn.functional.softplus(dt)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    update = dt.unsqueeze(-1) * B.unsqueeze(2) * x.unsqueeze(-1)
    return (pscan(decay, update) @ C.unsqueeze(-1)).squeeze(-1) + D * x


def scans() -> dict[str, Callable[..., Tensor]]:
    found: dict[str, Callable[..., Tensor]] = {}
    for row in backend_report():
        if row.available and row.name != "reference":
            found[f"mambavox {row.name}"] = lambda backend=row.name, **tensors: selective_scan(
                **tensors, dt_softplus=True, backend=backend
            )
    found["definition (a loop over time)"] = lambda **tensors: selective_scan_reference(**tensors, dt_softplus=True)[0]
    try:
        import mambapy  # noqa: F401

        found["mambapy"] = mambapy_scan
    except ImportError:
        print("mambapy is not installed: left out (pip install mambapy)")
    return found


def check(candidates: dict[str, Callable[..., Tensor]]) -> None:
    """Every candidate agrees with the definition in float64, in output and in gradients."""
    tensors = draw(2, 8, 4, 200)
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    expected = selective_scan_reference(**exact, dt_softplus=True)[0]
    wanted = torch.autograd.grad(expected.square().sum(), list(exact.values()))
    for name, scan in candidates.items():
        output = scan(**tensors)
        gradients = torch.autograd.grad(output.square().sum(), list(tensors.values()))
        for got, want in zip((output, *gradients), (expected, *wanted), strict=True):
            error = ((got - want).norm() / want.norm()).item()
            if not error < 1e-5:
                raise SystemExit(f"{name} differs from the definition by {error:.1e}: no figures")


def seconds(scan: Callable[..., Tensor], tensors: dict[str, Tensor], backward: bool) -> float:
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        output = scan(**tensors)
        if backward:
            output.sum().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    candidates = scans()
    check(candidates)
    lines = [
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, "
        f"float32, median of {arguments.repeats} interleaved repetitions",
        "",
        "| shape | pass | " + " | ".join(candidates) + " |",
        "|---|---|" + "--:|" * len(candidates),
    ]
    for shape, sizes in SHAPES.items():
        tensors = draw(*sizes)
        for backward in (False, True):
            # The loop's backward pass takes minutes: it stores the state of every frame.
            timed = {name: scan for name, scan in candidates.items() if not (backward and "loop" in name)}
            for scan in timed.values():
                seconds(scan, tensors, backward)
            times: dict[str, list[float]] = {name: [] for name in timed}
            for _ in range(arguments.repeats):
                for name, scan in timed.items():
                    times[name].append(seconds(scan, tensors, backward))
            medians = {name: statistics.median(values) for name, values in times.items()}
            first = next(iter(medians.values()))
            cells = [
                f"{1e3 * medians[name]:.1f} ms ({medians[name] / first:.1f}x)" if name in medians else "not run"
                for name in candidates
            ]
            label = "forward + backward" if backward else "forward"
            lines.append(f"| {shape} {sizes} | {label} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
