from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ops.interpreted_process import interpreted, needs_triton

from small_doge.ops.expert_retrieval import (
    balance_loss,
    expert_dots,
    expert_sum,
    load_statistics,
    naive_mixture,
    naive_search,
    search_experts,
)
from small_doge.ops.expert_retrieval.dense import dense_dots, dense_sum


def scores(kind: str, keys: int, tokens: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(keys)
    if kind == "random":
        return torch.randn(2, tokens, keys, generator=generator)
    if kind == "few_values_so_that_sums_tie":
        return torch.randint(-2, 3, (2, tokens, keys), generator=generator).float()
    if kind == "constant":
        return torch.zeros(2, tokens, keys)
    # The small half disappears in the sum, which then ties where the halves do not.
    tiny = 1e-9 * torch.randn(2, tokens, keys, generator=generator)
    tiny[1] = torch.randint(1, 3, (tokens, keys), generator=generator)
    return tiny


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("top_k", [1, 2, 5, 16, 25])
@pytest.mark.parametrize("keys", [5, 16, 32])
@pytest.mark.parametrize("kind", ["random", "few_values_so_that_sums_tie", "constant", "sums_that_tie_by_rounding"])
def test_product_keys_find_exactly_the_best_of_all_sums(kind, keys, top_k):
    given = scores(kind, keys)
    expected, experts = naive_search(given, top_k)
    found, index = search_experts(given, top_k)
    assert torch.equal(index, experts)
    assert torch.equal(found, expected)


def test_the_best_sums_come_first_and_belong_to_their_experts():
    given = scores("random", 8)
    found, index = search_experts(given, 6)
    assert (found[:, :-1] >= found[:, 1:]).all()
    sums = given[0].gather(1, index // 8) + given[1].gather(1, index % 8)
    assert torch.equal(found, sums)
    everything = (given[0][:, :, None] + given[1][:, None, :]).flatten(1)
    assert torch.equal(found, everything.topk(6).values)


def test_all_experts_can_be_asked_for():
    _, index = search_experts(scores("random", 4), 16)
    assert (index.sort(1).values == torch.arange(16)).all()


@needs_triton
def test_the_kernels_find_count_and_differentiate_in_the_interpreter():
    (different,) = interpreted(Path(__file__).with_name("interpreted.py"))
    assert len(different) == 20 and not any(different.values()), different


@pytest.mark.parametrize("top_k", [0, 26])
def test_an_impossible_number_of_experts_is_refused(top_k):
    with pytest.raises(ValueError, match=f"top_k is {top_k}: choose between 1 and the number of experts, 25"):
        search_experts(scores("random", 5), top_k)


def test_the_gradient_of_a_score_reaches_its_two_keys():
    given = scores("random", 6).double().requires_grad_()
    found, index = search_experts(given, 3)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    expected = torch.zeros_like(given)
    expected[0].scatter_add_(1, index // 6, weight)
    expected[1].scatter_add_(1, index % 6, weight)
    torch.testing.assert_close(given.grad, expected)


def case(dtype=torch.float64, tokens=23, top_k=4, experts=16, width=12):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    # Experts 12 to 15 are chosen by no token: their gradient must be zero and not left unwritten.
    index = torch.rand(tokens, 12, generator=generator).argsort(-1)[:, :top_k]
    return normal(tokens, width), index, normal(tokens, top_k), normal(experts, width), normal(experts, width)


def fast_mixture(x, index, weight, down, up, activation=F.silu):
    return expert_sum(weight * activation(expert_dots(x, down, index)), up, index)


def dense_mixture(x, index, weight, down, up, activation=F.silu):
    return dense_sum(weight * activation(dense_dots(x, down, index)), up, index)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("fast", [fast_mixture, dense_mixture], ids=["gathered rows", "products with the whole table"])
@pytest.mark.parametrize("activation", [F.silu, F.gelu], ids=["silu", "gelu"])
def test_outputs_and_every_gradient_equal_the_definition(activation, fast):
    results = []
    for mixture in (naive_mixture, fast):
        x, index, weight, down, up = case()
        leaves = [t.requires_grad_() for t in (x, weight, down, up)]
        out = mixture(x, index, weight, down, up, activation)
        out.sin().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for name, fast, naive in zip(("out", "x", "weight", "down", "up"), results[1], results[0], strict=True):
        torch.testing.assert_close(fast, naive, msg=name)
    assert results[1][3][12:].abs().max() == 0


def test_gradients_pass_the_numerical_check():
    x, index, weight, down, up = case(tokens=4, top_k=2, width=3)
    leaves = [t.requires_grad_() for t in (x, weight, down, up)]
    assert torch.autograd.gradcheck(lambda x, w, d, u: fast_mixture(x, index, w, d, u), leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_definition_in_double(dtype):
    given = case(dtype)
    expected = naive_mixture(*(t.double() if t.is_floating_point() else t for t in given))
    found = fast_mixture(*given)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < 0.02 * expected.abs().max()


def test_half_precision_trains():
    x, index, weight, down, up = case(torch.bfloat16)
    leaves = [t.requires_grad_() for t in (x, weight, down, up)]
    fast_mixture(x, index, weight, down, up).sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_a_token_does_not_depend_on_the_others():
    x, index, weight, down, up = case()
    together = fast_mixture(x, index, weight, down, up)
    alone = torch.cat([fast_mixture(x[i : i + 1], index[i : i + 1], weight[i : i + 1], down, up) for i in range(23)])
    # Not to the bit: a vectorized exponential rounds otherwise than the one for what is left over.
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=1e-14)


def test_no_tensor_of_tokens_times_experts_times_width_is_formed():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves(out):
                if isinstance(t, torch.Tensor):
                    self.elements = max(self.elements, t.numel())
            return out

    x, index, weight, down, up = case(tokens=200, top_k=8, width=64)
    leaves = [t.requires_grad_() for t in (x, weight, down, up)]
    for mixture, formed in ((fast_mixture, False), (naive_mixture, True)):
        with Largest() as largest:
            mixture(leaves[0], index, *leaves[1:]).sum().backward()
        assert (largest.elements >= 200 * 8 * 64) is formed


def balance(given: torch.Tensor, top_k: int, valid: torch.Tensor | None = None) -> torch.Tensor:
    return balance_loss(given, search_experts(given.float(), top_k)[1], valid)


def switch_loss(given: torch.Tensor, top_k: int) -> torch.Tensor:
    """The definition: a softmax over all E experts, one token at a time."""
    keys = given.shape[-1]
    probability = (given[0][:, :, None] + given[1][:, None, :]).flatten(1).softmax(-1).mean(0)
    _, index = naive_search(given, top_k)
    share = torch.bincount(index.flatten(), minlength=keys * keys) / index.numel()
    return keys * keys * (share * probability).sum()


def test_the_balance_loss_is_the_switch_loss_over_all_experts():
    given = 2 * scores("random", 6)
    torch.testing.assert_close(balance(given, 3), switch_loss(given, 3))


def test_the_balance_loss_is_one_for_equal_use_and_grows_with_imbalance():
    assert balance(torch.zeros(2, 50, 6), 3).item() == pytest.approx(1.0)
    one_favourite = torch.zeros(2, 50, 6)
    one_favourite[:, :, 2] = 20.0
    assert balance(one_favourite, 1).item() == pytest.approx(36.0, rel=1e-3)


def test_padding_does_not_count_for_balance_and_load():
    given = 2 * scores("random", 6)
    valid = torch.arange(50) < 30
    torch.testing.assert_close(balance(given, 3, valid), balance(given[:, :30], 3))
    assert load_statistics(given, 3, valid) == load_statistics(given[:, :30], 3)


def test_the_load_counts_the_experts_that_a_layer_chooses():
    # In bf16 many sums tie that differ in fp32, in which a layer adds.
    given = scores("random", 16, tokens=400).bfloat16()
    assert not torch.equal(search_experts(given, 4)[1], search_experts(given.float(), 4)[1])
    assert load_statistics(given, 4) == load_statistics(given.float(), 4)


def router_trained(coefficient: float):
    """A router that starts with a favourite, trained on a task that does not care which expert it picks."""
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    router = torch.nn.Linear(16, 16)
    with torch.no_grad():
        router.bias[[1, 9]] = 4.0
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    for _ in range(150):
        logits = router(x).view(-1, 2, 8).transpose(0, 1)
        found, index = search_experts(logits, 2)
        loss = (found.softmax(-1)[:, 0] - 0.7).square().mean() + coefficient * balance_loss(logits, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return load_statistics(router(x).view(-1, 2, 8).transpose(0, 1), 2)


def test_the_balance_loss_balances_and_without_it_nothing_does():
    without, balanced = router_trained(0.0), router_trained(0.05)
    assert balanced.entropy > 0.9 and balanced.used > 0.85 and balanced.busiest < 0.1
    assert without.entropy < 0.85 and without.busiest > 0.1


def test_load_statistics_of_known_loads():
    one = torch.zeros(2, 10, 4)
    one[:, :, 1] = 9.0
    load = load_statistics(one, 1)
    assert (load.used, load.entropy, load.busiest) == (1 / 16, 0.0, 1.0)
    everything = load_statistics(torch.zeros(2, 10, 4), 16)
    assert everything.used == 1.0 and everything.entropy == pytest.approx(1.0)
