"""What this machine can run."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

TRITON_INSTALLED = find_spec("triton") is not None
"""Triton is imported only where a kernel is about to run."""


def has_triton(tensor: Tensor) -> bool:
    """Whether Triton kernels run where the tensor lies."""
    return tensor.is_cuda and TRITON_INSTALLED
