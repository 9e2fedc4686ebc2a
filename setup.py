"""Compile the native CPU kernels where there is a compiler; everything else about the package stands in pyproject.toml.

The library has a plain C interface, so that one build serves every version of Python and torch. Without a working
compiler the install goes on, and the scan runs in plain torch operations.
"""

import platform
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

SOURCES = Path("mambavox/ops/csrc")
FLAGS = ["-O3", "-g0", "-std=gnu11", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# The flags of each instruction set; library.c chooses among them when it runs.
INSTRUCTION_SETS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ]


class BuildKernels(build_ext):
    """One object for each kernel and instruction set, linked into one library."""

    def get_ext_filename(self, fullname: str) -> str:
        """A plain name without Python's version: it is no Python module."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        """Compile with OpenMP, or without where the compiler has none: then one thread works."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        for openmp in (["-fopenmp"], []):
            try:
                self._compile(target, openmp)
                return
            except (CompileError, LinkError) as error:
                failure = error
        print(f"mambavox: no native kernels, the scan will run in plain torch operations ({failure})")

    def _compile(self, target: Path, openmp: list[str]) -> None:
        with TemporaryDirectory() as folder:
            objects = []
            for name, flags in INSTRUCTION_SETS.items():
                kernels = [str(SOURCES / file) for file in ("scan_kernel.c", "conv_kernel.c", "rates.c")]
                objects += self.compiler.compile(
                    kernels,
                    output_dir=f"{folder}/{name}",
                    macros=[("ISA", name)],
                    extra_postargs=[*FLAGS, *flags, *openmp],
                )
            objects += self.compiler.compile(
                [str(SOURCES / "library.c")], output_dir=folder, extra_postargs=[*FLAGS, *openmp]
            )
            self.compiler.link_shared_object(objects, str(target), extra_postargs=openmp)


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python 3: the library does not know Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Tag of the wheel."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("mambavox.ops.libmambavox", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
