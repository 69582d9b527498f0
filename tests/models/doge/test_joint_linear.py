from __future__ import annotations

import torch
from torch import nn

from small_doge.models.doge import joint_linear
from small_doge.models.doge.joint_linear import summed_linear


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
