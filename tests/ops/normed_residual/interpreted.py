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


def rounded() -> list[float]:
    """The gradient of x in half precision, where both weights lie between two numbers that it has."""
    x = torch.randn(40, 24).half().requires_grad_()
    weights = [torch.full((24,), 1 + 0.45 * 2**-10) for _ in range(2)]
    errors = []
    for output in (0, 1):
        grad = torch.randn(40, 24).half()
        found = torch.autograd.grad(normed_residual(x, *weights, EPS)[output], x, grad)[0].float()
        exact, ones = x.detach().double().requires_grad_(), torch.ones(24).double()
        outputs = naive_normed_residual(exact, ones, ones, EPS)
        expected = torch.autograd.grad(outputs[output], exact, grad.double())[0]
        errors.append(float((found - expected).norm() / expected.norm()))
    return errors


def main() -> None:
    triton_interpreter.prepare()
    torch.manual_seed(0)
    found = {"less than a program": errors(2, 3, 24), "several programs": errors(3, 101, 20)}
    print(json.dumps(found | {"rounded": rounded()}))


if __name__ == "__main__":
    main()
