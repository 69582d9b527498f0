"""The algorithms of cuBLASLt for a product, through ctypes: torch has no way to name one.

Reference: https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api. Its matrices are column-major: a
contiguous matrix of torch's is its transpose there, so that out = left @ right is made as out^T = right^T @ left^T.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# From cublasLt.h and library_types.h.
COMPUTE_32F, REAL_32F = 68, 0
ELEMENT = {torch.bfloat16: 14, torch.float16: 2}
TRANSPOSE_A = 3
NOT_SUPPORTED = 15
MOST = 32
"""Candidates asked for; cuBLAS 13 names eight."""


class _Algorithm(ctypes.Structure):
    _fields_ = [("data", c_uint64 * 8)]


class _Candidate(ctypes.Structure):
    _fields_ = [
        ("algorithm", _Algorithm),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    """The library that torch has loaded; None, said once, where there is none."""
    name = f"libcublasLt.so.{(torch.version.cuda or '').split('.')[0]}"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        logger.warning("%s cannot be loaded: training takes torch's choice of products, which is slower.", name)
        return None
    library.cublasLtMatrixLayoutCreate.argtypes = [POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64]
    library.cublasLtMatmul.argtypes = [c_void_p] * 14 + [c_size_t, c_void_p]
    return library


def _call(name: str, *arguments: Any, allowed: int = 0) -> None:
    status = getattr(_library(), name)(*arguments)
    if status not in (0, allowed):
        raise RuntimeError(f"{name} ended with status {status}.")


def _create(name: str, *arguments: Any) -> c_void_p:
    made = c_void_p()
    _call(f"cublasLt{name}Create", byref(made), *arguments)
    return made


@cache
def _handle(device: int) -> c_void_p:
    with torch.cuda.device(device):
        return _create("")


class Algorithm:
    """One way of cuBLASLt to compute `left @ right` for matrices of one shape, or of `right` transposed."""

    def __init__(self, handle: c_void_p, operation: c_void_p, layouts: list[c_void_p], candidate: _Candidate) -> None:
        self._handle, self._operation, self._layouts, self._candidate = handle, operation, layouts, candidate
        self._one, self._zero = c_float(1.0), c_float(0.0)

    def __call__(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        of_right, of_left, of_out = self._layouts
        pointer = out.data_ptr()
        stream = torch.cuda.current_stream(out.device).cuda_stream
        _call(
            "cublasLtMatmul",
            *(self._handle, self._operation, ctypes.addressof(self._one)),
            *(right.data_ptr(), of_right, left.data_ptr(), of_left, ctypes.addressof(self._zero)),
            *(pointer, of_out, pointer, of_out),
            *(ctypes.addressof(self._candidate.algorithm), None, 0, stream),
        )


def algorithms(left: Tensor, right: Tensor, transposed: bool, out: Tensor) -> list[Algorithm]:
    """What cuBLASLt names for out [M, N] = left [M, K] @ right, [N, K] if `transposed` or else [K, N].

    All are contiguous, begin at multiples of 256 bytes and are of one dtype of half precision; sums are in fp32.
    Algorithms that need memory of their own, to sum parts in, are left out. The list is empty for other dtypes, where
    there is no cuBLASLt, and where it has none for this GPU.
    """
    if _library() is None or out.dtype not in ELEMENT:
        return []
    handle = _handle(out.device.index)
    kind = ELEMENT[out.dtype]
    layouts = [
        _create("MatrixLayout", kind, columns, rows, columns) for rows, columns in (right.shape, left.shape, out.shape)
    ]
    operation = _create("MatmulDesc", COMPUTE_32F, REAL_32F)
    _call("cublasLtMatmulDescSetAttribute", operation, TRANSPOSE_A, byref(c_int(transposed)), c_size_t(4))
    preference = _create("MatmulPreference")
    found, count = (_Candidate * MOST)(), c_int()
    of_right, of_left, of_out = layouts
    _call(
        "cublasLtMatmulAlgoGetHeuristic",
        *(handle, operation, of_right, of_left, of_out, of_out, preference, MOST, found, byref(count)),
        allowed=NOT_SUPPORTED,
    )
    _call("cublasLtMatmulPreferenceDestroy", preference)
    return [Algorithm(handle, operation, layouts, found[i]) for i in range(count.value) if found[i].state == 0]
