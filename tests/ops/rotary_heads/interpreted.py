"""Runs the kernels of the heads in Triton's interpreter, on a CPU; prints relative errors as one JSON line.

A process of its own, because the interpreter must be chosen before Triton is imported.
"""

import json

# isort: off
import triton_interpreter  # first: it chooses the interpreter
# isort: on

import torch

from small_doge.ops.rotary_heads import naive_normed_rotary_heads, normed_rotary_heads

NAMES = ("query", "key", "value", "dots", "joint", "query weight", "key weight", "dot weight")
SHAPES = {
    "whole tiles": (1, 64, 4, 2, 32, 1, 2),
    "a ragged length": (2, 37, 2, 1, 32, 1, 1),
    "positions of each row": (2, 21, 2, 2, 16, 2, 2),
    "a head that is no power of two, a dot product of each query head": (1, 33, 3, 1, 24, 1, 3),
}
EPS = 1e-2  # large enough to be missed if it were left out


def errors(batch: int, length: int, heads: int, groups: int, size: int, tables: int, dots: int) -> dict[str, float]:
    torch.manual_seed(0)
    joint = torch.randn(batch, length, (heads + 2 * groups) * size)
    weights = [1 + 0.3 * torch.randn(size) for _ in range(2)] + [torch.randn(dots, groups * size)]
    angle = torch.randn(tables, length, size // 2).repeat(1, 1, 2)
    inputs = [x.requires_grad_() for x in (joint, *weights)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    tables_of = {x: (angle.to(x).cos(), angle.to(x).sin()) for x in (torch.float32, torch.float64)}
    found = normed_rotary_heads(*inputs, *tables_of[torch.float32], heads=heads, eps=EPS)
    expected = naive_normed_rotary_heads(*exact, *tables_of[torch.float64], heads=heads, eps=EPS)
    grads = [torch.randn_like(x) for x in found]
    found = (*found, *torch.autograd.grad(found, inputs, grads))
    expected = (*expected, *torch.autograd.grad(expected, exact, [g.double() for g in grads]))
    pairs = zip(NAMES, found, expected, strict=True)
    return {name: float((f.double() - e).norm() / e.norm()) for name, f, e in pairs}


def main() -> None:
    triton_interpreter.prepare()
    cases = {case: errors(*shape) for case, shape in SHAPES.items()}
    print(json.dumps({f"{name}, {case}": error for case, found in cases.items() for name, error in found.items()}))


if __name__ == "__main__":
    main()
