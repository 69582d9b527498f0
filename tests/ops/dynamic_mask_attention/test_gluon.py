"""The kernels in Gluon: compiled for an H100 that is not here, the queues they go through, and, on one, their results.

On a Hopper GPU: `pytest tests/ops/dynamic_mask_attention/test_gluon.py -m gpu`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted_process import needs_triton

pytestmark = needs_triton


def compiled(kernel: Any, tiles: dict[str, tuple[list[int], torch.dtype]], pointers: list[str], **constants: Any):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from small_doge.ops.dynamic_mask_attention.gluon_queue import ELEMENT

    signature, values = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in tiles:
            shape, dtype = tiles[name]
            layout = gl.NVMMASharedLayout.get_default_for(shape, ELEMENT[dtype])
            kind = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
            signature[name] = f"tensordesc<{kind}{shape},{layout!r}>"
        elif name in pointers:
            signature[name] = "*i32" if name == "queue_ptr" else "*fp32"
        elif name in constants:
            signature[name], values[(position,)] = "constexpr", constants[name]
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
    source = GluonASTSource(kernel, signature, values)
    return compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


def check(binary: Any, folder: Path) -> None:
    """It fits, and the assembler leaves products asynchronous: where it cannot, it says so and waits before each."""
    from triton import knobs

    assert binary.metadata.shared <= 227 * 1024
    source = folder / "kernel.ptx"
    source.write_text(binary.asm["ptx"])
    command = [knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", str(source), "-o", str(folder / "kernel.cubin")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "Compiling entry function" in told and "serialized" not in told


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_forward_fits_an_h100(dtype, tmp_path):
    from small_doge.ops.dynamic_mask_attention.gluon_forward import gluon_forward_kernel

    rows, keys = ([1, 1, 64, 128], dtype), ([1, 1, 128, 128], dtype)
    tiles = {"q_desc": rows, "k_desc": keys, "v_desc": keys, "score_desc": ([128], torch.float32), "out_desc": rows}
    check(compiled(gluon_forward_kernel, tiles, ["lse_ptr", "queue_ptr"]), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_key_pass_fits_an_h100(dtype, tmp_path):
    from small_doge.ops.dynamic_mask_attention.gluon_backward import gluon_key_kernel

    rows = ([1, 1, 64, 128], dtype)
    tiles = {f"{name}_desc": rows for name in ("q", "k", "v", "grad", "dk", "dv")}
    tiles |= {"rows_desc": ([64], torch.float32), "kept_desc": ([64, 64], dtype)}
    check(
        compiled(gluon_key_kernel, tiles, ["score_ptr", "dscore_ptr", "queue_ptr"], R=2, LOG2E=1.4426950408889634),
        tmp_path,
    )


@pytest.mark.parametrize("last_heaviest", [False, True])
@pytest.mark.parametrize(("rows", "tiles", "together", "programs"), [(192, 16, 16, 132), (7, 5, 2, 3), (2, 1, 8, 132)])
def test_every_tile_is_handed_out_once_and_in_turn(rows, tiles, together, programs, last_heaviest):
    from small_doge.ops.dynamic_mask_attention.gluon_queue import BETWEEN, hand_out

    lists = hand_out(rows, tiles, together, programs, last_heaviest=last_heaviest)
    assert sorted(piece for pieces in lists for piece in pieces) == list(range(rows * tiles))

    def cost(piece: int) -> float:
        return BETWEEN + (piece % tiles + 1 if last_heaviest else tiles - piece % tiles)

    loads = [sum(map(cost, pieces)) for pieces in lists]
    # No program is given a tile while another is free.
    assert max(loads) - min(loads) <= tiles + BETWEEN
    for pieces in lists:
        # The heaviest of a group of rows first, and one group after the other.
        order = [(piece // tiles // together, -cost(piece)) for piece in pieces]
        assert order == sorted(order)


@pytest.fixture
def hopper(monkeypatch):
    """The rule's word on tensors that are said to lie on a Hopper GPU."""
    from small_doge.ops.dynamic_mask_attention import triton_attention as attention

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(attention.triton, "__version__", "3.6.0")
    attention.gluon_known.cache_clear()

    def choose(queries=64, keys=64, head_size=128, dtype=torch.bfloat16, listed=False, masked=False):
        query, key = (torch.empty(2, heads, n, head_size, dtype=dtype) for heads, n in ((4, queries), (2, keys)))
        return attention.choose_gluon(query, key, listed=listed, masked=masked)

    yield choose
    attention.gluon_known.cache_clear()


def test_a_step_of_pretraining_goes_by_gluon(hopper):
    assert hopper() and hopper(dtype=torch.float16)


@pytest.mark.parametrize(
    "case",
    [
        {"listed": True},
        {"masked": True},
        {"dtype": torch.float32},
        {"queries": 63},
        {"head_size": 64},
    ],
    ids=["lists", "horizons", "fp32", "a chunk after a cache", "heads of 64"],
)
def test_the_rest_does_not(hopper, case):
    assert not hopper(**case)


def test_another_gpu_and_another_triton_do_not(hopper, monkeypatch, caplog):
    from small_doge.ops.dynamic_mask_attention import triton_attention as attention

    monkeypatch.setattr(attention.triton, "__version__", "3.7.1")
    attention.gluon_known.cache_clear()
    assert not hopper() and not hopper()
    assert [record.getMessage() for record in caplog.records] == [
        "Attention's fastest kernels want Triton 3.6; with 3.7.1 others serve."
    ]
    monkeypatch.setattr(attention.triton, "__version__", "3.6.2")
    attention.gluon_known.cache_clear()
    assert hopper()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert not hopper()


CASES = {"a row": (1, 2, 1, 1), "rows of 60M": (3, 4, 2, 2048), "odd": (2, 6, 2, 333), "one head": (2, 1, 1, 129)}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES)
def test_on_a_gpu_they_give_what_the_kernels_in_triton_give(shape, dtype):
    from small_doge.ops.dynamic_mask_attention import triton_attention as attention
    from small_doge.ops.dynamic_mask_attention.gluon_forward import gluon_forward
    from small_doge.ops.dynamic_mask_attention.triton_fused_backward import fused_backward
    from small_doge.ops.dynamic_mask_attention.triton_tma_forward import tma_forward

    batch, heads, groups, length = shape
    torch.manual_seed(0)

    def drawn(count: int) -> torch.Tensor:
        return torch.randn(batch, length, count, 128, device="cuda", dtype=dtype).transpose(1, 2)

    query, grad, key, value = drawn(heads), drawn(heads), drawn(groups), drawn(groups)
    # As the model has it: another order of dimensions, and no row a multiple of 16 bytes.
    score = (2 * torch.randn(batch, length, groups, device="cuda")).transpose(1, 2)
    score[0, 0, 0] = float("-inf")
    scale = 128**-0.5
    out, lse = gluon_forward(query, key, value, score, scale=scale, together=8)
    tiles = attention.TMA_TILES[128, False]
    expected = tma_forward(query, key, value, score, None, None, scale=scale, tiles=tiles, together=8)
    torch.testing.assert_close(out, expected[0], rtol=2e-2, atol=4e-3)
    torch.testing.assert_close(lse, expected[1], rtol=1e-5, atol=1e-5)
    grads = [
        fused_backward(
            *(grad, out, lse, query, key, value, score, None, None),
            scale=scale,
            plan=attention.PLANS[128],
            together=8,
            specialized=specialized,
        )
        for specialized in (False, True)
    ]
    for name, ours, theirs in zip(("query", "key", "value", "score"), grads[1], grads[0], strict=True):
        assert torch.equal(ours, theirs), name
