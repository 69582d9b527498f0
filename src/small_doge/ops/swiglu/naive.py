"""The definition of the gated unit, written to be read."""

import torch.nn.functional as F
from torch import Tensor


def naive_swiglu(joint: Tensor) -> Tensor:
    """silu of the first half of the last dimension times the second half: [..., f] from [..., 2f]."""
    gate, up = joint.chunk(2, -1)
    return F.silu(gate) * up
