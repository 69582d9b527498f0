"""The kernels compiled for GPUs that are not here: an RTX 4090 (sm_89), whose programs have 99 KiB of shared memory,
and for the fused backward an H100 (sm_90), where they have 227."""

from __future__ import annotations

import pytest
from interpreted_process import needs_triton

pytestmark = [
    pytest.mark.slow,
    needs_triton,
]


def shared_bytes(kernel: str, head_size: int, element: int) -> int:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from small_doge.ops.dynamic_mask_attention import triton_attention, triton_backward, triton_forward

    function = {
        "forward": triton_forward.forward_kernel,
        "query": triton_backward.query_kernel,
        "key": triton_backward.key_kernel,
    }[kernel]
    tiles = triton_attention.SMALL_TILES[kernel, head_size, element]
    constants = {"R": 2, "D": head_size, "DP": head_size, "BM": tiles.rows, "BN": tiles.keys, "GRANULES": 1}
    constants |= {
        "GRANULE_SIZE": 128,
        "MASKED": False,
        "LISTED": False,
        "TOGETHER": triton_attention.TOGETHER,
        "PRECISION": "tf32x3",
        "EVEN": True,
    }
    absent = ("end_ptr", "reach_ptr", "index_ptr", "seen_ptr", "slot_ptr")
    signature, values, aligned = {}, {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants or name in absent:
            signature[name], values[(position,)] = "constexpr", constants.get(name)
        elif name == "scale":
            signature[name] = "fp32"
        else:
            signature[name] = pointer_type(name, element) if name.endswith("_ptr") else "i32"
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, values, aligned)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    return triton.compile(source, target=GPUTarget("cuda", 89, 32), options=options).metadata.shared


def fused_shared_bytes(kernel: str, head_size: int) -> int:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from small_doge.ops.dynamic_mask_attention import triton_attention, triton_fused_backward

    plan = triton_attention.PLANS[head_size]
    function, rows, warps, stages = {
        "keys": (triton_fused_backward.fused_kernel, plan.rows, plan.warps, plan.stages),
        "queries": (triton_fused_backward.product_kernel, plan.query_rows, plan.query_warps, plan.query_stages),
    }[kernel]
    constants = {"R": 2, "D": head_size, "DP": head_size, "BM": rows, "BN": plan.keys, "GRANULES": 32}
    constants |= {"GRANULE_SIZE": 64, "MASKED": True, "EVEN": False, "TOGETHER": triton_attention.TOGETHER}
    tile = f"tensordesc<bf16[1, 1, {plan.rows}, {head_size}]>"
    types = {"q_desc": tile, "grad_desc": tile, "rows_desc": f"tensordesc<fp32[1, 1, {plan.rows}]>", "scale": "fp32"}
    types |= {"kept_desc": f"tensordesc<bf16[{plan.keys}, {plan.rows}]>", "end_ptr": "*i32", "reach_ptr": "*i32"}
    signature, values = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name], values[(position,)] = "constexpr", constants[name]
        else:
            signature[name] = types.get(name) or (pointer_type(name, 2) if name.endswith("_ptr") else "i32")
    source = ASTSource(function, signature, values)
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def tma_shared_bytes(masked: bool) -> int:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from small_doge.ops.dynamic_mask_attention import triton_attention
    from small_doge.ops.dynamic_mask_attention.triton_tma_forward import tma_forward_kernel

    tiles = triton_attention.TMA_TILES[128, masked]
    constants = {"R": 2, "DP": 128, "BM": tiles.rows, "BN": tiles.keys, "GRANULES": 32, "GRANULE_SIZE": 64}
    constants |= {"MASKED": masked, "TOGETHER": triton_attention.TOGETHER}
    rows, keys = (f"tensordesc<bf16[1, 1, {count}, 128]>" for count in (tiles.rows, tiles.keys))
    types = {"q_desc": rows, "k_desc": keys, "v_desc": keys, "out_desc": rows, "scale": "fp32"}
    types |= {
        "score_desc": f"tensordesc<fp32[1, {tiles.keys}]>",
        "lse_ptr": "*fp32",
        "end_ptr": "*i32",
        "reach_ptr": "*i32",
    }
    signature, values = {}, {}
    for position, name in enumerate(tma_forward_kernel.arg_names):
        if name in constants:
            signature[name], values[(position,)] = "constexpr", constants[name]
        else:
            signature[name] = types.get(name, "i32")
    source = ASTSource(tma_forward_kernel, signature, values)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def pointer_type(name: str, element: int) -> str:
    if name in ("score_ptr", "lse_ptr", "delta_ptr", "dscore_ptr"):
        return "*fp32"
    return {2: "*bf16", 4: "*fp32"}[element]


@pytest.mark.parametrize("element", [2, 4], ids=["bf16", "fp32"])
@pytest.mark.parametrize("head_size", [64, 128, 256])
@pytest.mark.parametrize("kernel", ["forward", "query", "key"])
def test_a_program_fits_a_consumer_card(kernel: str, head_size: int, element: int) -> None:
    assert shared_bytes(kernel, head_size, element) <= 99 * 1024


@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("kernel", ["keys", "queries"])
def test_the_fused_backward_fits_an_h100(kernel: str, head_size: int) -> None:
    assert fused_shared_bytes(kernel, head_size) <= 227 * 1024


@pytest.mark.parametrize("masked", [False, True], ids=["every key", "with horizons"])
def test_the_forward_by_the_tma_fits_an_h100(masked: bool) -> None:
    assert tma_shared_bytes(masked) <= 227 * 1024
