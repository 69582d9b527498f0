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

from small_doge.models.doge import joint_linear
from small_doge.ops import dynamic_mask_attention
from small_doge.ops.dynamic_mask_attention import retention, triton_attention


def main() -> None:
    triton_interpreter.prepare()
    for name in triton_attention.TILES:
        triton_attention.TILES[name] = triton_attention.Tiles(rows=32, keys=32, warps=4, stages=1)
    for module in (dynamic_mask_attention, retention):
        module.has_triton = lambda tensor: True
    # With gradients, as where the model is compiled for training: joint products, and the kernels of the heads.
    joint_linear._reshapable = lambda x, *maps: torch.is_grad_enabled()
    for case in json.loads(sys.argv[1]):
        print(json.dumps(differences(*case)), flush=True)


if __name__ == "__main__":
    main()
