"""Runs models through the Triton kernels in Triton's interpreter, on a CPU; prints one JSON line a case.

A process of its own (`test_kernels_in_the_model.py` starts it): the interpreter must be chosen before Triton is
imported.
"""

from __future__ import annotations

import json
import sys

# isort: off
import triton_interpreter  # first: it chooses the interpreter
# isort: on

import torch
from kernels_compare import differences

from small_doge.models.doge import joint_linear, mlp_doge, modeling_doge, norm_doge
from small_doge.ops import dynamic_mask_attention
from small_doge.ops.dynamic_mask_attention import retention, triton_attention

FUSED = (
    (modeling_doge, "normed_rotary_heads"),
    (mlp_doge, "swiglu"),
    (mlp_doge, "mixture_hidden"),
    (norm_doge, "normed_residual"),
    (joint_linear, "tuned_linear"),
)
"""What a compiled model uses in place of the definitions' own steps."""


def count_calls() -> dict[str, int]:
    """How often each of them has been called, from now on."""
    calls = dict.fromkeys((name for _, name in FUSED), 0)

    def counted(name, function):
        def call(*args, **options):
            calls[name] += 1
            return function(*args, **options)

        return call

    for module, name in FUSED:
        setattr(module, name, counted(name, getattr(module, name)))
    return calls


def main() -> None:
    triton_interpreter.prepare()
    for name in triton_attention.TILES:
        triton_attention.TILES[name] = triton_attention.Tiles(rows=32, keys=32, warps=4, stages=1)
    for module in (dynamic_mask_attention, retention):
        module.has_triton = lambda tensor: True
    # With gradients, as where the model is compiled for training: joint products, and the kernels of the heads. The
    # definition, in double precision, stays as it is.
    for module in (joint_linear, norm_doge):
        module.compiled_for_training = lambda x: x.dtype == torch.float32 and torch.is_grad_enabled()
    mlp_doge.prefers_dense = lambda *shape: True
    calls = count_calls()
    for case in json.loads(sys.argv[1]):
        print(json.dumps(differences(*case)), flush=True)
    assert all(calls.values()), f"not used by any case: {calls}"


if __name__ == "__main__":
    main()
