"""Tensors in, tensors out: the selective scan and the causal convolution, each with its definition and fast paths."""

from mambavox.ops.backends import backend_report, selected_backend
from mambavox.ops.causal_conv1d import causal_conv1d
from mambavox.ops.scan_reference import selective_scan_reference
from mambavox.ops.selective_scan import selective_scan

__all__ = [
    "backend_report",
    "causal_conv1d",
    "selected_backend",
    "selective_scan",
    "selective_scan_reference",
]
