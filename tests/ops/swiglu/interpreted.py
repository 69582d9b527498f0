"""Runs the kernels of the gated unit in Triton's interpreter, on a CPU; prints relative errors as one JSON line.

A process of its own, because the interpreter must be chosen before Triton is imported.
"""

import json

# isort: off
import triton_interpreter  # first: it chooses the interpreter
# isort: on

import torch

from small_doge.ops.swiglu import naive_swiglu, swiglu


def errors(*shape: int) -> list[float]:
    joint = (3 * torch.randn(shape)).requires_grad_()
    exact = joint.detach().double().requires_grad_()
    found, expected = swiglu(joint), naive_swiglu(exact)
    grad = torch.randn_like(found)
    (dfound,), (dexpected,) = (
        torch.autograd.grad(found, joint, grad),
        torch.autograd.grad(expected, exact, grad.double()),
    )
    return [float((f.double() - e).norm() / e.norm()) for f, e in ((found, expected), (dfound, dexpected))]


def main() -> None:
    triton_interpreter.prepare()
    torch.manual_seed(0)
    print(json.dumps({"narrow": errors(2, 3, 14), "wider than a block": errors(3, 2100)}))


if __name__ == "__main__":
    main()
