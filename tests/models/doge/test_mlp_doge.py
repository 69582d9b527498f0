from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from small_doge.models.doge.mlp_doge import DogeCDMoE, DogeMLP
from small_doge.ops.expert_retrieval import balance_loss, load_statistics, search_experts


@pytest.fixture
def moe(make_config, randomized):
    return randomized(DogeCDMoE(make_config("mixture")))


def test_a_token_gets_the_dense_mlp_and_its_own_experts(moe):
    """Written out for one token at a time, from the definition."""
    x = torch.randn(2, 5, 64)
    out, *_ = moe(x)
    for b in range(2):
        for t in range(5):
            token = x[b, t]
            first, second = moe.router_gate(token).split(6)
            sums = {6 * i + j: (first[i] + second[j]) for i in range(6) for j in range(6)}
            best = sorted(sums, key=lambda e: -sums[e].item())[:4]
            weights = torch.stack([sums[e] for e in best]).softmax(0)
            expected = moe.down_proj(F.silu(moe.gate_proj(token)) * moe.up_proj(token))
            for e, weight in zip(best, weights, strict=True):
                expected = expected + weight * F.silu(token @ moe.down_embed.weight[e]) * moe.up_embed.weight[e]
            torch.testing.assert_close(out[b, t], expected, atol=1e-5, rtol=1e-4)


def test_router_logits_are_the_two_halves_of_each_token(moe):
    x = torch.randn(2, 5, 64)
    _, logits, _ = moe(x)
    assert logits.shape == (2, 10, 6)
    expected = moe.router_gate(x.flatten(0, 1))
    torch.testing.assert_close(torch.cat((logits[0], logits[1]), -1), expected)


def test_the_weights_have_the_names_and_shapes_of_transformers(moe, make_config):
    from transformers.models.doge.modeling_doge import DogeCDMoE as Theirs

    theirs = Theirs(make_config("mixture")).state_dict()
    assert {n: t.shape for n, t in moe.state_dict().items()} == {n: t.shape for n, t in theirs.items()}


def test_a_dense_mlp_has_no_router(make_config):
    out, *router = DogeMLP(make_config())(torch.randn(1, 3, 64), balanced=True)
    assert out.shape == (1, 3, 64) and router == [None, None]


def test_legacy_routing_depends_on_what_follows_and_ours_does_not(make_model):
    ids = torch.randint(3, 60, (1, 12))
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 60
    moved = {}
    for legacy in (False, True):
        model = make_model("mixture", legacy_routing=legacy)
        moved[legacy] = (model(ids).logits - model(other).logits)[0, :-1].abs().max().item()
    assert moved[False] < 1e-5 < 1e-2 < moved[True]


def balance_of(router_logits: tuple[torch.Tensor, ...], kept: slice | torch.Tensor = slice(None)) -> torch.Tensor:
    layers = [scores[:, kept] for scores in router_logits]
    return torch.stack([balance_loss(scores, search_experts(scores, 4)[1]) for scores in layers]).mean()


def test_the_loss_with_router_logits_adds_the_weighted_balance_loss(make_model):
    model = make_model("mixture", router_aux_loss_coef=0.3)
    ids = torch.randint(3, 60, (2, 20))
    plain, routed = model(ids, labels=ids), model(ids, labels=ids, output_router_logits=True)
    assert plain.router_logits is None and plain.aux_loss is None
    assert len(routed.router_logits) == 2
    expected = balance_of(routed.router_logits)
    torch.testing.assert_close(routed.aux_loss, expected)
    torch.testing.assert_close(routed.loss, plain.loss + 0.3 * expected)


def test_the_configuration_can_ask_for_router_logits(make_model):
    ids = torch.randint(3, 60, (2, 20))
    assert make_model("mixture", output_router_logits=True)(ids).aux_loss is not None
    assert make_model("dense", output_router_logits=True)(ids).aux_loss is None


def test_padding_does_not_count_for_the_balance(make_model):
    model = make_model("mixture")
    ids = torch.randint(3, 60, (2, 20))
    mask = torch.ones_like(ids)
    mask[0, :8] = 0
    out = model(ids, attention_mask=mask, output_router_logits=True)
    torch.testing.assert_close(out.aux_loss, balance_of(out.router_logits, mask.bool().flatten()))


def test_micro_batches_each_give_their_share_of_the_balance(make_model):
    model = make_model("mixture", output_router_logits=True, router_aux_loss_coef=1.0)
    ids = torch.randint(3, 60, (1, 20)).repeat(4, 1)
    whole = model(ids, labels=ids).loss
    parts = [model(part, labels=part, num_items_in_batch=torch.tensor(4 * 19)).loss for part in ids.split(1)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def trained(model, steps=25):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    losses = []
    for _ in range(steps):
        start = torch.randint(3, 40, (8, 1), generator=generator)
        ids = start + torch.arange(16)
        loss = model(ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = model.eval()(ids, output_router_logits=True).router_logits
    return losses, [load_statistics(layer, 4) for layer in logits]


def test_a_mixture_trains_and_its_balance_loss_spreads_the_load(make_model):
    entropies = []
    for coefficient in (0.0, 0.5):
        model = make_model("mixture", output_router_logits=True, router_aux_loss_coef=coefficient)
        with torch.no_grad():
            for layer in model.model.layers:
                # A favourite key in each half, in the direction of every normed token's mean.
                layer.post_attention_layernorm.weight.copy_(torch.ones(64))
                layer.mlp.router_gate.weight[[2, 8]] *= 4.0
        losses, loads = trained(model)
        assert losses[-1] < 0.7 * losses[0]
        entropies.append(sum(load.entropy for load in loads) / 2)
    assert entropies[1] > entropies[0] + 0.05
