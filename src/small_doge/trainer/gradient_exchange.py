"""Gradients averaged over processes by one all-reduce, after the backward pass of a step's last micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn

ALIGNED = 64
"""Numbers to whose multiples a gradient's place begins: kernels then read and write it 16 bytes at a time."""


class GradientExchange:
    """Averages a model's gradients over the processes of `torch.distributed`, all of a dtype at once.

    DistributedDataParallel exchanges gradients beside the backward pass, from hooks on the host that a replayed CUDA
    graph never reaches. Over NVLink the exchange is short beside a step, and no kernel of the backward pass has to
    share the multiprocessors with it.

    Args:
        model: On its process's device. As under DistributedDataParallel, all take the first process's weights.
    """

    def __init__(self, model: nn.Module) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        self._named = list(model.named_parameters())
        self._learn: list[bool] = []
        self._flat: list[Tensor] = []
        self._places: dict[nn.Parameter, Tensor] = {}

    def keep(self, gradients: Sequence[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
        """Copies of gradients where they will be exchanged, so that nothing has to be copied then."""
        self._lay_out()
        places = [self._places[parameter] for parameter, _ in gradients]
        torch._foreach_copy_(places, [grad for _, grad in gradients])
        return places

    def average(self) -> None:
        """Replace every gradient by its mean over the processes.

        Raises:
            ValueError: a parameter learns and has no gradient.
        """
        self._lay_out()
        elsewhere: dict[nn.Parameter, Tensor] = {}
        for name, parameter in self._named:
            if parameter.grad is None and parameter.requires_grad:
                raise ValueError(
                    f"{name} learns and got no gradient: set ddp_find_unused_parameters: true, or freeze it."
                )
            if parameter.grad is not None and parameter.grad is not self._places[parameter]:
                elsewhere[parameter] = parameter.grad
        if elsewhere:
            torch._foreach_copy_([self._places[parameter] for parameter in elsewhere], list(elsewhere.values()))
        for flat in self._flat:
            dist.all_reduce(flat, op=dist.ReduceOp.AVG)
        for parameter in elsewhere:
            parameter.grad = self._places[parameter]

    def _lay_out(self) -> None:
        """Give each parameter that learns its place; anew when others learn."""
        learn = [parameter.requires_grad for _, parameter in self._named]
        if learn == self._learn:
            return
        self._learn, self._flat, self._places = learn, [], {}
        learning = [parameter for _, parameter in self._named if parameter.requires_grad]
        for dtype in dict.fromkeys(parameter.dtype for parameter in learning):
            parameters = [parameter for parameter in learning if parameter.dtype == dtype]
            *starts, end = accumulate((-(-p.numel() // ALIGNED) * ALIGNED for p in parameters), initial=0)
            flat = torch.zeros(end, dtype=dtype, device=parameters[0].device)
            self._flat.append(flat)
            for parameter, start in zip(parameters, starts, strict=True):
                self._places[parameter] = flat[start : start + parameter.numel()].view_as(parameter)
