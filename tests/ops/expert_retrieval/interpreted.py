"""Runs the search for experts in Triton's interpreter, on a CPU; prints what differs from the definition as JSON.

A process of its own, because the interpreter must be chosen before Triton is imported.
"""

import json

# isort: off
import triton_interpreter  # first: it chooses the interpreter
# isort: on

import torch

from small_doge.ops.expert_retrieval import mixture_hidden, naive_hidden, naive_search
from small_doge.ops.expert_retrieval.triton_count import triton_count
from small_doge.ops.expert_retrieval.triton_search import triton_search


def scores(kind: str, keys: int, tokens: int) -> torch.Tensor:
    if kind == "random":
        return torch.randn(2, tokens, keys)
    if kind == "few values, so that sums tie":
        return torch.randint(-2, 3, (2, tokens, keys)).float()
    # The small half disappears in the sum, which then ties where the halves do not.
    tiny = 1e-9 * torch.randn(2, tokens, keys)
    tiny[1] = torch.randint(1, 3, (tokens, keys))
    return tiny


def differences(given: torch.Tensor, top_k: int) -> list[str]:
    given.requires_grad_()
    found = triton_search(given, top_k)
    expected = naive_search(given, top_k)
    weight = torch.randn_like(expected[0])
    grads = [torch.autograd.grad(best, given, weight)[0] for best, _ in (found, expected)]
    same = {
        "scores": torch.equal(found[0], expected[0]),
        "experts": torch.equal(found[1], expected[1]),
        "gradient": torch.allclose(*grads, rtol=1e-6, atol=1e-6),
    }
    return [name for name, equal in same.items() if not equal]


def hidden_differences(tokens: int, width: int, experts: int, top_k: int) -> list[str]:
    joint = (2 * torch.randn(tokens, 2 * width + experts)).requires_grad_()
    scores = torch.randn(tokens, top_k).requires_grad_()
    index = torch.rand(tokens, experts).argsort(-1)[:, :top_k]
    exact = [x.detach().double().requires_grad_() for x in (joint, scores)]
    found = mixture_hidden(joint, scores, index, experts)
    expected = naive_hidden(*exact, index, experts)
    grad = torch.randn_like(found)
    found = (found, *torch.autograd.grad(found, (joint, scores), grad))
    expected = (expected, *torch.autograd.grad(expected, exact, grad.double()))
    near = [torch.allclose(f.double(), e, rtol=1e-5, atol=1e-5) for f, e in zip(found, expected, strict=True)]
    return [name for name, same in zip(("hidden", "joint", "scores"), near, strict=True) if not same]


def main() -> None:
    triton_interpreter.prepare()
    torch.manual_seed(0)
    cases = {}
    for keys, top_k, tokens in ((5, 1, 3), (5, 25, 4), (32, 16, 9), (128, 32, 1)):
        for kind in ("random", "few values, so that sums tie", "sums that tie by rounding"):
            # As a router's product gives them: a token's halves side by side.
            given = scores(kind, keys, tokens).transpose(0, 1).contiguous().transpose(0, 1)
            cases[f"{top_k} of {keys} x {keys}, {kind}"] = differences(given, top_k)
    for tokens, width, experts, top_k in ((3, 20, 25, 4), (2, 1100, 1100, 16), (2, 7, 9, 1)):
        name = f"hidden features of {width} and {top_k} of {experts}"
        cases[name] = hidden_differences(tokens, width, experts, top_k)
    broken = torch.full((2, 3, 5), float("nan"))
    best, index = triton_search(broken, 4)
    cases["scores that are not numbers"] = [] if best.isinf().all() and (index < 25).all() else ["experts"]
    for tokens, experts, top_k in ((700, 25, 16), (3, 9, 2)):
        chosen, valid = torch.randint(0, experts, (tokens, top_k)), torch.rand(tokens) < 0.7
        for name, kept, mask in (("all", chosen, None), ("valid", chosen[valid], valid)):
            same = torch.equal(triton_count(chosen, experts, mask), kept.flatten().bincount(minlength=experts))
            cases[f"choices of {experts} experts by {name} of {tokens} tokens"] = [] if same else ["counts"]
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
