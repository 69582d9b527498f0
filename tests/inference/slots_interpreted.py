"""Runs the token step's kernels in Triton's interpreter beside the plain step; prints one JSON line a case.

A process of its own (`test_torch_slots_kernels.py` starts it): the interpreter must be chosen before Triton is
imported.
"""

import json
import sys
from functools import partial

# isort: off
from ops import triton_interpreter  # first: it chooses the interpreter
# isort: on

import torch
from inference.slots_compare import differences

from small_doge.inference import gpu_graphs
from small_doge.inference.gpu_graphs import KernelStep


def main() -> None:
    triton_interpreter.prepare()
    torch.use_deterministic_algorithms(False)
    # Few and large programs: the interpreter pays for each.
    gpu_graphs.BLOCK_VOCAB = 32
    gpu_graphs.matvec_tile = lambda outputs, inputs: {"K": inputs, "KP": 64, "BN": 64, "num_warps": 4}
    KernelStep.splits = lambda self, lanes: 2
    for kind, matvec_lanes in json.loads(sys.argv[1]):
        print(json.dumps(differences(kind, partial(KernelStep, matvec_lanes=matvec_lanes))), flush=True)


if __name__ == "__main__":
    main()
