"""The native library by itself: what it is built from, and how it lives with processes and compilers."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from mambavox.ops import native, selective_scan

ROOT = Path(__file__).parents[2]
NO_COMPILER = {"PATH": "", "CC": "no-compiler-here"}


def scan(threads):
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x, dt, B, C = (torch.randn(4, 300, width, generator=generator) for width in (64, 64, 16, 16))
    return selective_scan(x, dt, -torch.ones(64, 16), B, C, dt_softplus=True).sum().item()


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
