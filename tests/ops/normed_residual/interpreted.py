"""Runs the gradient of the normed and the carried stream in Triton's interpreter, on a CPU; prints relative errors.

A process of its own, because the interpreter must be chosen before Triton is imported.
"""

import json

# isort: off
import triton_interpreter  # first: it chooses the interpreter
# isort: on

import torch

from small_doge.ops.normed_residual import naive_normed_residual, normed_residual

EPS = 1e-2  # large enough to be missed if it were left out


def errors(*shape: int) -> list[float]:
    inputs = [(torch.randn(size) + 0.5).requires_grad_() for size in (shape, shape[-1:], shape[-1:])]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found, expected = normed_residual(*inputs, EPS), naive_normed_residual(*exact, EPS)
    grads = [torch.randn(shape) for _ in found]
    dfound = torch.autograd.grad(found, inputs, grads)
    dexpected = torch.autograd.grad(expected, exact, [grad.double() for grad in grads])
    pairs = zip((*found, *dfound), (*expected, *dexpected), strict=True)
    return [float((f.double() - e).norm() / e.norm()) for f, e in pairs]


def main() -> None:
    triton_interpreter.prepare()
    torch.manual_seed(0)
    print(json.dumps({"less than a program": errors(2, 3, 24), "several programs": errors(3, 101, 20)}))


if __name__ == "__main__":
    main()
