"""What this machine can run."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

TRITON_INSTALLED = find_spec("triton") is not None
"""Triton is imported only where a kernel is about to run."""


def has_triton(tensor: Tensor) -> bool:
    """Whether Triton kernels run where the tensor lies."""
    return tensor.is_cuda and TRITON_INSTALLED


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may ask of a CUDA device."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]


def traceable(kernel: Any) -> Any:
    """A Triton kernel as a `torch.library.triton_op` launches it: seen by torch.compile, which then launches it itself.

    That takes the host a tenth of the time. Triton's interpreter has kernels of another kind, which nothing compiles.
    """
    from triton.runtime.jit import JITFunction

    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel
