"""The trial on a CPU, with ways and a clock of the test's own.

With cuBLAS on a GPU: `pytest tests/ops/products -m gpu`.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from small_doge.ops.products import cublaslt, tuned, tuned_linear
from small_doge.ops.products.cublaslt import algorithms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tuned_map_and_its_gradients_are_those_of_torch(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(5, 8, requires_grad=True)
    grad = torch.randn(2, 3, 5, dtype=dtype)
    found, expected = tuned_linear(x, weight), F.linear(x, weight.to(dtype))
    assert torch.equal(found, expected)
    for f, e in zip(*(torch.autograd.grad(y, (x, weight), grad) for y in (found, expected)), strict=True):
        torch.testing.assert_close(f, e)


@pytest.mark.parametrize("transposed", [True, False])
def test_the_gradients_of_a_product_are_those_of_torch(transposed):
    torch.manual_seed(0)
    left = torch.randn(4, 4, requires_grad=True)
    right = torch.randn(4, 4, requires_grad=True)
    grad = torch.randn(4, 4)
    found, expected = tuned.tuned_product(left, right, transposed), left @ (right.T if transposed else right)
    assert torch.equal(found, expected)
    for f, e in zip(*(torch.autograd.grad(y, (left, right), grad) for y in (found, expected)), strict=True):
        torch.testing.assert_close(f, e)


class Way:
    """A way to make a product that is off by the relative `error` and takes `time`."""

    def __init__(self, time: float, error: float = 0.0) -> None:
        self.time, self.error = time, error

    def __call__(self, left, right, out):
        torch.mm(left, right, out=out).mul_(1 + self.error)
        clock.append(self.time)


clock: list[float] = []


def duration(product) -> float:
    clock.clear()
    product()
    return sum(clock)


@pytest.mark.parametrize(
    ("ways", "chosen"),
    [
        ([Way(3.0), Way(2.0), Way(1.0), Way(2.5)], 2),
        ([Way(3.0), Way(2.0), Way(1.0, error=1e-3)], 1),
        ([Way(3.0), Way(2.99)], 0),
        ([Way(3.0), Way(4.0)], 0),
        ([Way(3.0)], 0),
    ],
    ids=["the_fastest", "other_bits_are_refused", "hardly_faster_is_not_enough", "slower", "alone"],
)
def test_the_fastest_way_of_the_same_bits_is_taken(ways, chosen):
    left, right = torch.randn(4, 3), torch.randn(3, 2)
    state = torch.get_rng_state()
    # Zeros, as a new model's output projections are, must not make all ways look the same.
    for values in (left, torch.zeros(4, 3)):
        assert tuned.fastest(ways, values, right, torch.empty(4, 2), duration) is ways[chosen]
    assert torch.equal(torch.get_rng_state(), state)


def test_matrices_that_are_empty_or_begin_anywhere_are_left_to_torch():
    buffer = torch.zeros(512)
    begin = -buffer.data_ptr() % tuned.ALIGNMENT // 4
    right = buffer[begin : begin + 6].view(3, 2)
    assert tuned.tunable(right, right)
    assert not tuned.tunable(buffer[begin + 1 : begin + 7].view(2, 3), right)
    assert not tuned.tunable(right.T, buffer[begin + 32 : begin + 38].view(3, 2))
    assert not tuned.tunable(right.new_empty(0, 3), right)


class Library:
    """A cuBLASLt that ends its search for algorithms with a status."""

    def __init__(self, status: int) -> None:
        self.status = status

    def __getattr__(self, name: str):
        return lambda *arguments: self.status if name == "cublasLtMatmulAlgoGetHeuristic" else 0


def test_where_cublas_has_nothing_for_a_gpu_there_are_no_algorithms(monkeypatch):
    monkeypatch.setattr(cublaslt, "_handle", lambda device: None)
    left, right, out = (torch.empty(shape, dtype=torch.float16) for shape in ((4, 3), (3, 2), (4, 2)))
    monkeypatch.setattr(cublaslt, "_library", lambda: Library(cublaslt.NOT_SUPPORTED))
    assert algorithms(left, right, False, out) == []
    monkeypatch.setattr(cublaslt, "_library", lambda: Library(7))
    with pytest.raises(RuntimeError, match="cublasLtMatmulAlgoGetHeuristic ended with status 7"):
        algorithms(left, right, False, out)
    # Nothing is asked for a dtype that is not tried.
    assert algorithms(left.float(), right.float(), False, out.float()) == []


@pytest.mark.gpu
@pytest.mark.parametrize("transposed", [True, False], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_algorithm_of_cublas_makes_the_product(dtype, transposed):
    torch.manual_seed(0)
    left = torch.randn(4096, 768, device="cuda", dtype=dtype)
    right = torch.randn((1536, 768) if transposed else (768, 1536), device="cuda", dtype=dtype)
    expected = left.double() @ (right.T if transposed else right).double()
    out = torch.empty_like(expected, dtype=dtype)
    found = algorithms(left, right, transposed, out)
    assert found
    for algorithm in found:
        algorithm(left, right, out.zero_())
        assert (out - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.gpu
def test_a_shape_is_tried_once_it_has_come_often_or_without_patience(monkeypatch):
    monkeypatch.setattr(tuned, "_patience", 2)
    for rows, impatient in ((1000, False), (1001, True)):
        left = torch.randn(rows, 264, device="cuda", dtype=torch.bfloat16)
        right = torch.randn(136, 264, device="cuda", dtype=torch.bfloat16)
        tried = []
        for _ in range(4):
            with tuned.without_patience() if impatient else nullcontext():
                assert torch.equal(tuned.tuned_product(left, right, True), left @ right.T)
            tried.append(sum(left.shape in key for key in tuned._chosen))
        assert tried == ([1, 1, 1, 1] if impatient else [0, 0, 1, 1])


def test_a_missing_library_is_told_once_and_names_no_algorithm(monkeypatch, caplog):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(cublaslt.ctypes, "CDLL", missing)
    cublaslt._library.cache_clear()
    x = torch.randn(2, 2, dtype=torch.bfloat16)
    try:
        assert [algorithms(x, x, True, x) for _ in range(2)] == [[], []]
    finally:
        cublaslt._library.cache_clear()
    (record,) = caplog.records
    assert "training takes torch's choice of products" in record.message


def test_patience_comes_back():
    with tuned.without_patience():
        assert tuned._patience == 0
    assert tuned._patience == tuned.PATIENCE


@pytest.mark.gpu
def test_a_product_of_a_shape_not_yet_seen_can_be_captured():
    left, right = (torch.randn(256, 136, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    graph = torch.cuda.CUDAGraph()
    torch.mm(left, right.T)  # makes cuBLAS's handle, which a capture cannot
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = tuned.tuned_product(left, right, True)
    graph.replay()
    assert torch.equal(out, left @ right.T)


@pytest.mark.gpu
def test_a_matrix_that_begins_anywhere_is_multiplied():
    buffer = torch.randn(1 + 256 * 136, device="cuda", dtype=torch.bfloat16)
    left, right = buffer[1:].view(256, 136), torch.randn(264, 136, device="cuda", dtype=torch.bfloat16)
    with tuned.without_patience():
        assert torch.equal(tuned.tuned_product(left, right, True), left @ right.T)
        assert tuned.tuned_product(left[:0], right, True).shape == (0, 264)
