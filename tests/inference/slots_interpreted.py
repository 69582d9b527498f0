"""Runs the token step's kernels in Triton's interpreter beside the plain step; prints one JSON line a case.

A process of its own (`test_torch_slots_kernels.py` starts it): the interpreter must be chosen before Triton is
imported.
"""

import json
import sys

# isort: off
from ops import triton_interpreter  # first: it chooses the interpreter
# isort: on

import numpy as np
import torch
from inference.slots_models import small_model

from small_doge.inference import gpu_graphs
from small_doge.inference.gpu_graphs import KernelStep
from small_doge.inference.sampling import SamplingParams
from small_doge.inference.torch_slots import TorchSlots

FREE = [SamplingParams(), SamplingParams(temperature=1.0, seed=2**40 + 3)]
FILTERED = [
    SamplingParams(temperature=1.0, top_k=5, top_p=0.7, seed=1),
    SamplingParams(temperature=1.3, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.4, seed=9),
]
PROMPTS = [[0, 5, 9, 3, 8, 11], [0, *range(10, 21)]]


def run(model, matvec_lanes: int | None):
    """One row before its window is full and one beyond, drawn freely, with filters, and given a token."""
    session = TorchSlots(model, 3, max_length=64)
    if matvec_lanes is not None:
        session.runner = KernelStep(session.weights, session.state, matvec_lanes)
    rows = [2, 0]
    session.prefill(PROMPTS, rows)
    parts = [session.decode(4, FREE, [(), (3, 9)], rows), session.decode(2, FILTERED, [()] * 2, rows)]
    return session.state, parts, session.step([1, 2], rows)


def compare(kind: str, matvec_lanes: int) -> dict[str, float]:
    """Largest differences between the kernels and the plain step; tokens that differ."""
    model = small_model(kind, num_hidden_layers=1)
    (plain, said, logits), (state, found, found_logits) = run(model, None), run(model, matvec_lanes)
    pairs = list(zip(said, found, strict=True))
    caches = ("keys", "values", "scores", "positions", "length", "token", "seen")
    return {
        "tokens that differ": float(sum((a.tokens != b.tokens).sum() for a, b in pairs)),
        "ends that differ": float(sum((a.stopped != b.stopped).sum() for a, b in pairs)),
        "log-probabilities": float(max(np.abs(a.logprobs - b.logprobs).max() for a, b in pairs)),
        "logits": float(np.abs(logits - found_logits).max()),
    } | {n: float((getattr(plain, n).double() - getattr(state, n).double()).abs().max()) for n in caches}


def main() -> None:
    triton_interpreter.prepare()
    torch.use_deterministic_algorithms(False)
    # Few and large programs: the interpreter pays for each.
    gpu_graphs.BLOCK_VOCAB = 32
    gpu_graphs.matvec_tile = lambda outputs, inputs: {"K": inputs, "KP": 64, "BN": 64, "num_warps": 4}
    KernelStep.splits = lambda self, lanes: 2
    for case in json.loads(sys.argv[1]):
        print(json.dumps(compare(*case)), flush=True)


if __name__ == "__main__":
    main()
