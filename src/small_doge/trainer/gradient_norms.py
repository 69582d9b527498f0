"""Each parameter's gradient norm in a step: where a run that goes wrong went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from small_doge.trainer.optimizers import local_part

NAMED = 10
"""Parameters that a summary names: the largest norms, and the first that are no numbers."""


@dataclass(frozen=True)
class GradientNorms:
    """Norms of one step's gradients, left on the device.

    Attributes:
        names: The parameters, P of them.
        norms_P: Their norms in fp32, of this process's part where the gradients are sharded.
        sharded: Whether they are.
    """

    names: list[str]
    norms_P: Tensor
    sharded: bool

    @classmethod
    def of(cls, model: nn.Module) -> GradientNorms | None:
        """Measure a model's gradients now; None where the engine keeps them to itself, as DeepSpeed does."""
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        if not gradients:
            return None
        norms = torch._foreach_norm([local_part(gradient) for gradient in gradients.values()])
        sharded = any(isinstance(gradient, DTensor) for gradient in gradients.values())
        return cls([name.removeprefix("module.") for name in gradients], torch.stack(norms).float(), sharded)

    def summary(self, accelerator: Any) -> dict[str, Any]:
        """How many of how many norms are no finite numbers, the first of those, and the largest of the others.

        Every process calls it, since sharded norms are put together.
        """
        norms = self.norms_P
        if self.sharded:
            norms = accelerator.reduce(norms.square(), "sum").sqrt()
        named = dict(zip(self.names, norms.tolist(), strict=True))
        finite = {name: norm for name, norm in named.items() if abs(norm) < torch.inf}
        return {
            "parameters": len(named),
            "not_finite": len(named) - len(finite),
            "first_not_finite": [name for name in named if name not in finite][:NAMED],
            "largest": dict(sorted(finite.items(), key=lambda item: -item[1])[:NAMED]),
        }
