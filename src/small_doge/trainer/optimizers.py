"""Muon for the matrices, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

# Quintic that lifts every singular value towards 1; coefficients of Keller Jordan's Muon
# (kellerjordan.github.io/posts/muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end between about 0.7 and 1.2.

    Args:
        matrices: [N, rows, columns], all orthogonalized at once.
        steps: Newton-Schulz iterations.
    """
    a, b, c = NEWTON_SCHULZ
    # bf16 is enough and fast where the device has units for it; a CPU mostly emulates it.
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        # a x + (b G + c G G) x, the additions inside the products.
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def local_part(t: Tensor) -> Tensor:
    """The part of a tensor that FSDP2 keeps on this device; the tensor itself where nothing is sharded."""
    return t.to_local() if isinstance(t, DTensor) else t


def stack_whole(parts: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """Stack matrices of one shape, [N, rows, columns], gathering them first where `like` is sharded."""
    if not isinstance(like[0], DTensor):
        return torch.stack(list(parts))
    sharded: list[Tensor] = [
        DTensor.from_local(part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
        for part, p in zip(parts, like, strict=True)
        if isinstance(p, DTensor)
    ]
    stacked = torch.stack(sharded)
    assert isinstance(stacked, DTensor)
    return stacked.full_tensor()


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """What of a whole matrix, known to every device, belongs to this device's part of `like`."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


class Muon(Optimizer):
    """Muon on groups with `use_muon`, AdamW on the others; matrices of one shape are updated together.

    A matrix's step is its orthogonalized Nesterov momentum times sqrt(max(1, rows / columns)), so that one learning
    rate serves every shape. Both parts decay weights the decoupled way. Under FSDP2 each matrix is gathered for its
    orthogonalization, which every device then does; the moments stay sharded.

    Args:
        groups: Parameter groups from `muon_groups`, or alike: `params`, `lr`, `use_muon`, `weight_decay`.
        momentum: Of the Muon groups.
        betas, eps: Of the AdamW groups.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults | {"use_muon": False})
        for group in self.param_groups:
            if group["use_muon"] and any(p.ndim != 2 for p in group["params"]):
                raise ValueError("a Muon group holds a parameter that is not a matrix: move it to an AdamW group.")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon_step if group["use_muon"] else self._adamw_step)(group, params)
        return loss

    def _muon_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in params:
            by_shape[p.shape].append(p)
        for (rows, columns), same in by_shape.items():
            gradients = [local_part(p.grad) for p in same if p.grad is not None]
            momenta = [self._state(p, "momentum_buffer") for p in same]
            torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
            update = orthogonalize(stack_whole(list(nesterov), same))
            steps = [own_part(u, p) for u, p in zip(update.unbind(), same, strict=True)]
            parts = [local_part(p) for p in same]
            torch._foreach_mul_(parts, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parts, steps, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _adamw_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        gradients = [local_part(p.grad) for p in params if p.grad is not None]
        first = [self._state(p, "exp_avg") for p in params]
        second = [self._state(p, "exp_avg_sq") for p in params]
        params = [local_part(p) for p in params]
        group["steps"] = group.get("steps", 0) + 1
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, (1.0 - beta2 ** group["steps"]) ** 0.5)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(params, first, denominators, value=-group["lr"] / (1.0 - beta1 ** group["steps"]))

    def _state(self, p: Tensor, name: str) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        return local_part(state[name])


def muon_groups(model: nn.Module, muon_lr: float, adamw_lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for `Muon`: the layers' weight matrices by Muon, everything else by AdamW.

    Embeddings, the head, the mixture's experts and router, norms, residuals, biases, and what makes the scores (`A`,
    `dt_proj`) go to AdamW; of these only the embeddings, experts and router decay.
    """
    matrices, tables, vectors = [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.ndim != 2 or ".dt_proj." in name:
            vectors.append(p)
        elif any(part in name for part in ("embed", "lm_head", "router_gate", "score.")):
            tables.append(p)
        else:
            matrices.append(p)
    groups = [
        {"params": matrices, "lr": muon_lr, "use_muon": True, "weight_decay": weight_decay},
        {"params": tables, "lr": adamw_lr, "use_muon": False, "weight_decay": weight_decay},
        {"params": vectors, "lr": adamw_lr, "use_muon": False, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
