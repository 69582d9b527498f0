from __future__ import annotations

from pathlib import Path

import torch
from ops.interpreted_process import interpreted, needs_triton

from small_doge.ops.swiglu import naive_swiglu


def test_the_first_half_gates_the_second():
    joint = torch.tensor([[0.0, 100.0, -100.0, 3.0, 4.0, 5.0]])
    torch.testing.assert_close(naive_swiglu(joint), torch.tensor([[0.0, 400.0, 0.0]]))


@needs_triton
def test_the_kernels_equal_the_definition_in_the_interpreter():
    (errors,) = interpreted(Path(__file__).with_name("interpreted.py"))
    # Not (x < y): NaN must fail.
    assert len(errors) == 2 and not {name: found for name, found in errors.items() if not max(found) < 1e-6}
