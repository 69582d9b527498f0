"""Runs the head's Triton kernel in Triton's interpreter, on a CPU; prints relative errors as one JSON line.

A process of its own, because the interpreter must be chosen before Triton is imported.
"""

import json

# isort: off
import triton_interpreter  # first: it chooses the interpreter
# isort: on

import torch

from small_doge.ops.linear_cross_entropy import naive, triton_head


def errors(tokens: int, vocab: int, width: int) -> dict[str, float]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width).requires_grad_()
    weight = torch.randn(vocab, width).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,))
    labels[::5] = -100
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    loss = triton_head.triton_linear_cross_entropy(hidden, weight, labels, -100, torch.float32)
    found = (loss, *torch.autograd.grad(loss * 0.37, (hidden, weight)))
    loss = naive.naive_linear_cross_entropy(*exact, labels, -100)
    expected = (loss, *torch.autograd.grad(loss * 0.37, exact))
    names = ("loss", "hidden", "weight")
    return {
        f"{name} of {tokens} x {vocab}": float((f - e).norm() / e.norm())
        for name, f, e in zip(names, found, expected, strict=True)
    }


def main() -> None:
    triton_interpreter.prepare()
    triton_head.CHUNK_BYTES = 4 * 75 * 32
    triton_head.ROW_BLOCK = 16  # less than a row
    found = {}
    for parts in (1, 2):
        triton_head.SMALL = triton_head.Tiles(tokens=32, vocab=32, width=16, warps=4, stages=1, parts=parts)
        found |= {f"{name}, {parts} parts": error for name, error in (errors(70, 75, 24) | errors(33, 64, 40)).items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
