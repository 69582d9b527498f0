from __future__ import annotations

from types import SimpleNamespace

import torch
from small_models import small_model
from torch import nn

from small_doge.models.doge import joint_linear, modeling_doge, norm_doge
from small_doge.models.doge.joint_linear import plain_linear, reshapable, summed_linear
from small_doge.models.doge.norm_doge import DogeRMSNorm, normed_and_carried


def test_the_sum_of_two_maps_is_the_same_by_one_product_and_by_two(monkeypatch):
    torch.manual_seed(0)
    x, linear, table = torch.randn(2, 3, 12), nn.Linear(7, 4, bias=False), nn.Embedding(5, 4)
    expected = linear(x[..., :7]) + x[..., 7:] @ table.weight
    torch.testing.assert_close(summed_linear(x, linear, table), expected)
    monkeypatch.setattr(joint_linear, "reshapable", lambda x, *maps: True)
    torch.testing.assert_close(summed_linear(x, linear, table), expected)


def test_where_a_map_is_more_than_its_weight_its_own_forward_runs():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, linear, table = torch.randn(2, 12), Doubled(7, 4, bias=False), nn.Embedding(5, 4)
    expected = 2 * x[:, :7] @ linear.weight.T + x[:, 7:] @ table.weight
    torch.testing.assert_close(summed_linear(x, linear, table), expected)


def test_only_a_plain_map_without_hooks_may_be_reshaped(monkeypatch):
    monkeypatch.setattr(joint_linear, "compiled_for_training", lambda x: True)

    class Adapted(nn.Linear):
        pass

    gathered = nn.Linear(3, 2, bias=False)
    gathered.register_forward_pre_hook(lambda module, given: None)
    x, plain = torch.randn(2, 3), nn.Linear(3, 2, bias=False)
    assert reshapable(x, plain, nn.Embedding(2, 3))
    assert not any(reshapable(x, plain, m) for m in (Adapted(3, 2, bias=False), nn.Linear(3, 2), gathered))
    assert torch.equal(plain_linear(x, plain), plain(x))


def test_a_map_is_reshaped_only_where_a_gpu_trains_compiled(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = SimpleNamespace(is_cuda=True)
    assert joint_linear.compiled_for_training(x)
    with torch.no_grad():
        assert not joint_linear.compiled_for_training(x)
    assert not joint_linear.compiled_for_training(torch.randn(2))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    assert not joint_linear.compiled_for_training(x)


def test_a_norm_that_is_more_than_its_weight_runs_its_own_forward(monkeypatch):
    monkeypatch.setattr(norm_doge, "compiled_for_training", lambda x: True)
    monkeypatch.setattr(norm_doge, "normed_residual", lambda *given: "fused")

    class Shifted(DogeRMSNorm):
        def forward(self, x):
            return super().forward(x) + 1

    gathered = DogeRMSNorm(3)
    gathered.register_forward_pre_hook(lambda module, given: None)
    x, residual = torch.randn(2, 3), torch.randn(3)
    assert normed_and_carried(x, DogeRMSNorm(3), residual) == "fused"
    for norm in (Shifted(3), gathered):
        normed, carried = normed_and_carried(x, norm, residual)
        assert torch.equal(normed, norm(x)) and torch.equal(carried, residual * x)


def test_where_the_map_of_the_scores_is_more_than_its_weight_its_own_forward_makes_them(monkeypatch):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = small_model()
    attention, x = model.model.layers[0].self_attn, torch.randn(1, 5, 64)
    attention.dt_proj.__class__ = Doubled
    given = x, *model.model.rotary_emb(x, torch.arange(5)[None])
    expected = attention.heads(*given)
    monkeypatch.setattr(joint_linear, "compiled_for_training", lambda x: True)
    monkeypatch.setattr(modeling_doge, "normed_rotary_heads", lambda *given, **options: "fused")
    found = attention.heads(*given)
    assert found != "fused"
    torch.testing.assert_close(found, expected)
    attention.dt_proj.__class__ = nn.Linear
    assert attention.heads(*given) == "fused"
