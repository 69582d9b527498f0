from __future__ import annotations

from pathlib import Path

import torch
from ops.interpreted_process import interpreted, needs_triton

from small_doge.ops.normed_residual import naive_normed_residual


def test_one_output_is_normed_and_the_other_is_not():
    normed, carried = naive_normed_residual(
        torch.tensor([3.0, -4.0]), torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]), 0.0
    )
    torch.testing.assert_close(normed * 12.5**0.5, torch.tensor([3.0, -8.0]))
    torch.testing.assert_close(carried, torch.tensor([15.0, -24.0]))


@needs_triton
def test_the_gradients_equal_the_definitions_in_the_interpreter():
    (errors,) = interpreted(Path(__file__).with_name("interpreted.py"))
    # The forward rounds the weights; a gradient with them as they were would be 4.4e-4 off.
    rounded = errors.pop("rounded")
    assert len(rounded) == 2 and all(error < 3e-4 for error in rounded)
    # Not (x < y): NaN must fail.
    assert len(errors) == 2 and not {name: found for name, found in errors.items() if not max(found) < 1e-6}
