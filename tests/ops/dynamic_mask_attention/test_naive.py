"""The definition itself, against loops over its words."""

from __future__ import annotations

import pytest
import torch

from small_doge.ops.dynamic_mask_attention import attention_weights, naive_mask, round_score

from .attention_cases import LIMIT_KINDS, SCORE_KINDS, draw_inputs, draw_limits, draw_scores


def mask_by_loops(score, queries, window, limit):
    batch, groups, keys = score.shape
    rounded = round_score(score)
    mask = torch.zeros(batch, groups, queries, keys, dtype=torch.bool)
    for b in range(batch):
        for g in range(groups):
            for t in range(queries):
                i = keys - queries + t
                seen = [j for j in range(i + 1) if limit is None or i < limit[b, j]]
                best = sorted(seen, key=lambda j: (float(rounded[b, g, j]), j), reverse=True)
                mask[b, g, t, best[:window]] = True
    return mask


@pytest.mark.parametrize("limits", LIMIT_KINDS)
@pytest.mark.parametrize("scores", ["of four values", "of both signs", "constant"])
def test_mask_keeps_the_highest_scores_and_the_newer_of_equals(scores, limits):
    score, limit = draw_scores(scores, 2, 2, 24), draw_limits(limits, 2, 24)
    assert torch.equal(naive_mask(score, 24, 5, limit), mask_by_loops(score, 24, 5, limit))


def test_mask_equals_the_top_k_of_each_prefix_where_scores_are_distinct():
    score = torch.randperm(40).float()[None, None]
    future = torch.ones(40, 40, dtype=torch.bool).triu(1)
    rows = score.expand(1, 40, 40).masked_fill(future, -torch.inf)
    expected = torch.zeros(1, 40, 40, dtype=torch.bool).scatter(-1, rows.topk(8).indices, True) & ~future
    assert torch.equal(naive_mask(score, 40, 8)[0], expected)


def test_weights_sum_to_one_or_are_all_zero():
    query, key, _, score = draw_inputs(4, 2, 30, 30)
    limit = draw_limits("padded", 2, 30)
    total = attention_weights(query, key, score, keep_window=4, limit_BS=limit, scale=0.25).sum(-1)
    assert torch.all(((total - 1).abs() < 1e-12) | (total == 0))
    assert (total == 0).any()


def test_rounding_keeps_order_and_merges_noise():
    score = torch.cat([draw_scores(kind, 1, 1, 200).flatten() for kind in SCORE_KINDS]).sort().values
    rounded = round_score(score)
    assert torch.all(rounded[1:] >= rounded[:-1])
    finite = score.isfinite()
    assert torch.all((rounded - score)[finite].abs() <= score[finite].abs() * 2.0**-15)
    assert round_score(1 + torch.rand(100) * 2.0**-17).unique().numel() == 1
    assert torch.equal(round_score(torch.tensor([1.0, 1.0 + 2.0**-15])), torch.tensor([1.0, 1.0 + 2.0**-15]))


def test_rounding_makes_minus_zero_plus_zero():
    assert not torch.signbit(round_score(torch.tensor([-0.0, -1e-45]))).any()
