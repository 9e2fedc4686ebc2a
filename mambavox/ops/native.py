"""The native library of CPU kernels (``csrc``): found, loaded through its C interface, and described to Python.

It is compiled when the package is installed, where there is a compiler; it is tied to no version of Python or torch.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from mambavox.lengths import check_cu_seqlens, check_lengths

LIBRARY = Path(__file__).with_name("libmambavox.so")

# Of csrc/arrays.h: frames between two stored states.
SPAN = 16
# Channels of a kernel's tile, the unit to which channels are padded, and the most channels of one task.
_TILE, _UNIT, _MOST_CHANNELS = 64, 16, 1024
# Elements of work below which a second thread costs more than it gives.
_ELEMENTS_PER_THREAD = 1 << 15
# A tensor of so many bytes is mapped anew at each allocation: worth huge pages.
_LARGE = 8 << 20

# What the kernels read and write, and its number in csrc/arrays.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Array(ctypes.Structure):
    """``Array`` of csrc/arrays.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch_stride", ctypes.c_int64),
        ("time_stride", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
    )


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


def _integers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names]


def _arrays(*names: str) -> list[tuple[str, type]]:
    return [(name, Array) for name in names]


class Scan(ctypes.Structure):
    """``Scan`` of csrc/arrays.h."""

    _fields_ = (
        *_integers("rows", "d_inner", "d_state", "block", "dt_softplus", "reverse", "threads"),
        *_pointers("row", "A", "D", "dt_bias", "initial_state", "final_state", "checkpoints"),
        *_arrays("x", "dt", "B", "C", "z", "y"),
        *_pointers("grad_final_state"),
        *_arrays("grad_y", "grad_x", "grad_dt", "grad_z"),
        *_pointers("grad_A", "grad_D", "grad_dt_bias", "grad_initial_state"),
        *_arrays("grad_B", "grad_C"),
        *_integers("block_stride"),
    )


class Conv(ctypes.Structure):
    """``Conv`` of csrc/arrays.h."""

    _fields_ = (
        *_integers("rows", "d_inner", "width", "block", "silu", "reverse", "threads"),
        *_pointers("row", "weight", "bias", "initial_state", "final_state"),
        *_arrays("x", "y"),
        *_pointers("grad_final_state"),
        *_arrays("grad_y", "grad_x"),
        *_pointers("grad_weight", "grad_bias", "grad_initial_state"),
    )


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if not LIBRARY.is_file():
        return None, (
            "was not built: there was no working C compiler when mambavox was installed "
            "(install gcc or clang, then: pip install --force-reinstall --no-deps --no-cache-dir mambavox)"
        )
    try:
        # torch has loaded its OpenMP runtime by now; the library finds it by name and uses the same threads.
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, f"cannot be loaded: {error}"
    library.mambavox_instruction_set_name.restype = ctypes.c_char_p
    library.mambavox_use_huge_pages.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    library.mambavox_multiply_add_rate.argtypes = (ctypes.c_int64, ctypes.c_int64, ctypes.c_int)
    library.mambavox_multiply_add_rate.restype = ctypes.c_double
    for name, structure in (("scan", Scan), ("conv", Conv)):
        for direction in ("forward", "backward"):
            function = getattr(library, f"mambavox_{name}_{direction}")
            function.argtypes = (ctypes.POINTER(structure), ctypes.c_int)
    return library, ""


def why_not() -> str | None:
    """Reason why the library cannot be used, or ``None`` where it can."""
    return _load()[1] or None


def instruction_sets() -> list[str]:
    """Instruction sets that the library was compiled for and this processor has, slowest first; the last is used."""
    library, _ = _load()
    if library is None:
        return []
    return [
        library.mambavox_instruction_set_name(index).decode() for index in range(library.mambavox_instruction_sets())
    ]


def describe() -> str:
    """The instruction set and the number of threads that the kernels use."""
    return f"{instruction_sets()[_best_set()]}, threads: {torch.get_num_threads()}"


@functools.cache
def _best_set() -> int:
    return len(instruction_sets()) - 1


def run(function: str, arguments: Scan | Conv) -> None:
    """Call a kernel, ``scan_forward`` say, for the best instruction set.

    Raises:
        MemoryError: the kernel's working memory could not be had.
    """
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"the native library {reason}")
    if getattr(library, f"mambavox_{function}")(ctypes.byref(arguments), _best_set()):
        raise MemoryError(
            f"{function}: no memory for the kernel's buffers; free some (a smaller batch, shorter rows) or let fewer "
            "threads run (torch.set_num_threads)"
        )


def multiply_add_rate(iterations: int, threads: int) -> float:
    """Multiply-adds a second that the machine does in its registers, all threads together, every lane counted.

    Args:
        iterations: rounds of each thread.
        threads: how many threads work.

    Raises:
        RuntimeError: the library cannot be used.
    """
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"the native library {reason}")
    return library.mambavox_multiply_add_rate(iterations, threads, _best_set())


def array(tensor: Tensor | None) -> Array:
    """Describe a ``(batch, time, channel)`` tensor of any strides."""
    if tensor is None:
        return Array()
    return Array(tensor.data_ptr(), *tensor.stride(), DTYPES[tensor.dtype])


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a contiguous float32 tensor's first element."""
    return None if tensor is None else tensor.data_ptr()


def float32(tensor: Tensor | None) -> Tensor | None:
    """The tensor as contiguous float32, itself where it is that."""
    # Tested first: of most tensors both conversions would only give themselves, at a price.
    if tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.float().contiguous()


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised tensor; a large one is given its memory in huge pages."""
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.nbytes >= _LARGE:
        library, _ = _load()
        assert library is not None
        library.mambavox_use_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def total(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over the first dimension, in a fixed order; of one slice itself."""
    found = partial[0] if partial.shape[0] == 1 else partial.sum(dim=0)
    return found if dtype == torch.float32 else found.to(dtype)


def rows(x: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The sequences of a padded or a packed batch as ``Row`` of csrc/arrays.h.

    Args:
        x: ``(batch, time, d_inner)``.
        lengths: ``(batch,)`` int64.
        cu_seqlens: ``(sequences + 1,)`` int64.

    Returns:
        ``(rows, 5)`` int64: batch entry, first frame, length, frames up to the next sequence, first checkpoint.

    Raises:
        ConfigError: lengths or boundaries that reach beyond ``x``. The kernels believe them, and in a compiled or
            exported graph nothing else has looked at them.
    """
    if lengths is not None:
        lengths = check_lengths(lengths, *x.shape[:2])
    if cu_seqlens is not None:
        cu_seqlens = check_cu_seqlens(cu_seqlens, *x.shape[:2])
        starts = cu_seqlens[:-1]
        count = cu_seqlens[1:] - starts
        index = torch.arange(len(starts))
        return torch.stack([torch.zeros_like(starts), starts, count, count, starts // SPAN + index], dim=1)
    table = _full_rows(x.shape[0], x.shape[1])
    if lengths is not None:
        table = table.clone()
        table[:, 2] = lengths
    return table


@functools.lru_cache(maxsize=64)
def _full_rows(batch: int, time: int) -> Tensor:
    table = [[row, 0, time, time, row * (time // SPAN + 1)] for row in range(batch)]
    return torch.tensor(table, dtype=torch.int64).view(batch, 5)


def spans(batch: int, time: int, sequences: int) -> int:
    """Number of checkpoints that a batch of so many sequences has room for, whatever their lengths."""
    return batch * (time // SPAN) + sequences


def padded(channels: int) -> int:
    """Channels rounded up to what the kernels store checkpoints for."""
    return -(-channels // _UNIT) * _UNIT


def threads_and_block(row_count: int, channels: int, elements: int) -> tuple[int, int]:
    """How many threads a call is worth, and channels of a task so that each thread has some.

    Args:
        row_count: number of sequences.
        channels: ``d_inner``.
        elements: frames times channels times states.
    """
    threads = max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))
    blocks_of_a_row = -(-2 * threads // max(1, row_count)) if threads > 1 else 1
    blocks_of_a_row = max(blocks_of_a_row, -(-channels // _MOST_CHANNELS))
    unit = _TILE if channels >= _TILE * blocks_of_a_row else _UNIT
    # At least one unit, also where there are no channels: the kernels divide by it.
    return threads, max(1, -(-channels // (blocks_of_a_row * unit))) * unit
