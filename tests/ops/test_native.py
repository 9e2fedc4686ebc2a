"""The native library by itself: what it is built from, and how it lives with processes and compilers."""

import functools
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mambavox.ops import causal_conv1d, native, selective_scan

ROOT = Path(__file__).parents[2]
NO_COMPILER = {"PATH": "", "CC": "no-compiler-here"}


def scan(threads):
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x, dt, B, C = (torch.randn(4, 300, width, generator=generator) for width in (64, 64, 16, 16))
    return selective_scan(x, dt, -torch.ones(64, 16), B, C, dt_softplus=True).sum().item()


needs_library = pytest.mark.skipif(native.why_not() is not None, reason=f"the native library {native.why_not()}")


@needs_library
class TestExponential:
    """The decay of one frame, read off the output: no input, a state of ones, ``B`` and ``C`` one."""

    @pytest.fixture(params=["baseline", "avx2", "avx512"], autouse=True)
    def _instruction_set(self, request, monkeypatch):
        if request.param not in native.instruction_sets():
            pytest.skip(f"this processor has no {request.param}")
        index = native.instruction_sets().index(request.param)
        monkeypatch.setattr(native, "_best_set", lambda: index)

    def decays(self, dt, A):
        count, one = len(dt), torch.ones(1, 1, 1)
        dt = dt.view(1, 1, count)
        A, state = torch.full((count, 1), A), torch.ones(1, count, 1)
        return selective_scan(torch.zeros_like(dt), dt, A, one, one, initial_state=state, backend="cpu").flatten()

    def units_in_the_last_place(self, found, exact):
        rounded = exact.float()
        unit = torch.nextafter(rounded, torch.tensor(torch.inf)) - rounded
        return (found.double() - exact).abs() / unit.double()

    def test_of_an_exact_exponent_is_within_1_3_units_in_the_last_place(self):
        """In float32 ``A = -log(2)`` times log2(e) is -1: the decay is ``2 ** -dt``."""
        dt = torch.linspace(0, 125, 100_000)
        errors = self.units_in_the_last_place(self.decays(dt, -math.log(2)), torch.exp2(-dt.double()))
        assert errors.max() <= 1.3

    @pytest.mark.parametrize("A", [-1.0, -0.7318, -15.3])
    def test_of_a_decay_grows_by_2_2_units_for_each_unit_of_the_exponent(self, A):
        """``A log2(e)`` and its product with ``dt`` are rounded: 1.3e-7 of the exponent."""
        exponent = torch.cat([torch.linspace(0, 86, 50_000), torch.logspace(-8, 0, 50_000)])
        dt = (exponent / -A).float()
        exact = dt.double() * torch.tensor(A).double()
        errors = self.units_in_the_last_place(self.decays(dt, A), exact.exp())
        assert (errors <= 1.3 - 2.2 * exact).all()

    def test_of_zero_is_one(self):
        assert (self.decays(torch.zeros(100), -3.0) == 1).all()


@needs_library
def test_the_table_of_full_rows_is_not_changed_by_a_call_with_lengths():
    x = torch.randn(3, 40, 8)
    scan = functools.partial(selective_scan, x, x.abs(), -torch.ones(8, 2), x[..., :2], x[..., :2], backend="cpu")
    full = scan()
    scan(lengths=torch.tensor([0, 7, 40]))
    causal_conv1d(x, torch.randn(8, 4), lengths=torch.tensor([0, 7, 40]))
    assert native.rows(x, None, None)[:, 2].tolist() == [40, 40, 40]
    assert torch.equal(scan(), full)


@needs_library
def test_results_of_many_mebibytes_are_those_of_their_channels_alone():
    """From 8 MiB on their memory is asked for and touched in advance, in huge pages where the system has them."""
    names = ("x", "dt", "B", "C")
    tensors = {name: torch.randn(1, 2003, width) for name, width in zip(names, (1100, 1100, 4, 4), strict=True)}
    above, some = torch.randn(1, 2003, 1100), slice(400, 416)
    results = []
    for channels in (slice(None), some):
        x, dt = (tensors[name][..., channels].clone().requires_grad_() for name in ("x", "dt"))
        A = -torch.ones(x.shape[-1], 4)
        output = selective_scan(x, dt, A, tensors["B"], tensors["C"], dt_softplus=True, backend="cpu")
        results.append((output, *torch.autograd.grad(output, (x, dt), above[..., channels])))
    assert results[0][0].nbytes >= native._LARGE
    for whole, alone in zip(*results, strict=True):
        assert torch.equal(whole[..., some], alone)


def test_a_kernel_without_memory_says_how_to_mend_it(monkeypatch):
    library = SimpleNamespace(mambavox_scan_forward=lambda arguments, instruction_set: 1)
    monkeypatch.setattr(native, "_load", lambda: (library, ""))
    monkeypatch.setattr(native, "_best_set", lambda: 0)
    with pytest.raises(MemoryError, match=r"scan_forward: .* smaller batch.*torch\.set_num_threads"):
        native.run("scan_forward", native.Scan())


def test_a_forked_worker_scans_after_its_parent_did():
    """As a data loader's workers do: forked from a process whose threads exist, running one thread."""
    before = torch.get_num_threads()
    try:
        expected = scan(2)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply_async(scan, (1,)).get(timeout=60) == pytest.approx(expected)
    finally:
        torch.set_num_threads(before)


def test_torch_and_the_library_share_one_thread_pool():
    """Threads of a second OpenMP runtime would wait for the cores of the first, spinning."""
    if native.why_not() or not Path("/proc/self/maps").is_file():
        pytest.skip("needs the native library and /proc")
    # In a process of its own: other packages may bring runtimes of their own.
    script = (
        "from pathlib import Path; from mambavox.ops import native; assert native.why_not() is None\n"
        "lines = Path('/proc/self/maps').read_text().splitlines()\n"
        "print(*{line.split()[-1] for line in lines if 'libgomp' in line})"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert len(loaded) <= 1, loaded


@pytest.mark.slow
def test_without_a_compiler_the_package_installs_and_says_what_is_missing(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "*.so", "tests", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path / "wheels"), str(source)],
        env={**os.environ, **NO_COMPILER},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    script = (
        "import torch, mambavox; from mambavox.ops import *\n"
        f"assert mambavox.__file__.startswith({str(tmp_path)!r}), mambavox.__file__\n"
        "x = torch.randn(1, 9, 4); B = torch.randn(1, 9, 2)\n"
        "assert selective_scan(x, x.abs(), -torch.ones(4, 2), B, B).isfinite().all()\n"
        "print(selected_backend(), [row.reason for row in backend_report() if row.name == 'cpu'])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("torch")
    assert "no working C compiler" in ran.stdout
