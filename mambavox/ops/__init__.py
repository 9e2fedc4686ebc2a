"""Tensors in, tensors out: the scans and the causal convolution, each with its definition and fast paths."""

from mambavox.ops.backends import backend_report, selected_backend
from mambavox.ops.causal_conv1d import causal_conv1d
from mambavox.ops.mamba_ssm import causal_conv1d_fn, selective_scan_fn
from mambavox.ops.scan_reference import selective_scan_reference
from mambavox.ops.selective_scan import selective_scan
from mambavox.ops.ssd_reference import ssd_scan_reference
from mambavox.ops.ssd_scan import ssd_scan

__all__ = [
    "backend_report",
    "causal_conv1d",
    "causal_conv1d_fn",
    "selected_backend",
    "selective_scan",
    "selective_scan_fn",
    "selective_scan_reference",
    "ssd_scan",
    "ssd_scan_reference",
]
