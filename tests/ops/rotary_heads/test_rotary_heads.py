from __future__ import annotations

from pathlib import Path

import torch
from ops.interpreted_process import interpreted, needs_triton

from small_doge.ops.rotary_heads import naive_normed_rotary_heads, rotate


def test_a_rotation_keeps_lengths_and_composes():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    angle = torch.randn(5, 1, 4, dtype=torch.float64).repeat(1, 1, 2)
    turned = rotate(x, angle.cos(), angle.sin())
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(turned, (2 * angle).cos(), (2 * angle).sin()), rotate(x, *table(3 * angle)))


def table(angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return angle.cos(), angle.sin()


def test_heads_come_in_the_order_of_the_product():
    size, heads, groups = 4, 2, 1
    joint = torch.arange(1.0, 1 + (heads + 2 * groups) * size)[None, None]
    straight = torch.ones(1, 1, size), torch.zeros(1, 1, size)
    weights = torch.ones(size), 2 * torch.ones(size), torch.tensor([[1.0, 0.0, 0.0, -1.0], [0.0, 3.0, 0.0, 0.0]])
    query, key, value, dots = naive_normed_rotary_heads(joint, *weights, *straight, heads=heads, eps=0.0)
    expected = joint.unflatten(-1, (-1, size))
    torch.testing.assert_close(query, expected[:, :, :2] / expected[:, :, :2].square().mean(-1, True).sqrt())
    torch.testing.assert_close(key, 2 * expected[:, :, 2:3] / expected[:, :, 2:3].square().mean(-1, True).sqrt())
    torch.testing.assert_close(value, expected[:, :, 3:])
    torch.testing.assert_close(dots, torch.tensor([[[13.0 - 16.0, 3.0 * 14.0]]]))


@needs_triton
def test_the_kernels_equal_the_definition_in_the_interpreter():
    (errors,) = interpreted(Path(__file__).with_name("interpreted.py"))
    # Not (x < y): NaN must fail.
    assert len(errors) == 32 and not {name: error for name, error in errors.items() if not error < 1e-6}
