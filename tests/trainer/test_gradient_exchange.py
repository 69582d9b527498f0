"""Gradients exchanged after the backward pass are those of DistributedDataParallel, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from small_doge.trainer.gradient_exchange import ALIGNED, GradientExchange


class Layers(nn.Module):
    """One layer in fp32 and one in bf16, other weights for each seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3, dtype=torch.bfloat16)
        self.register_buffer("seed", torch.tensor(seed))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).bfloat16()).float().square().mean()


def by_hand(model: Layers, batches: Tensor, keep: bool) -> GradientExchange:
    exchange = GradientExchange(model)
    for number, x in enumerate(batches):
        model(x).backward()
        if keep and number == 0:
            made = [(parameter, parameter.grad) for parameter in model.parameters()]
            for (parameter, _), kept in zip(made, exchange.keep(made), strict=True):
                parameter.grad = kept
    exchange.average()
    return exchange


def process(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    batches = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))[rank]
    wrapped = DistributedDataParallel(Layers(rank))
    with wrapped.no_sync():
        for x in batches[:2]:
            wrapped(x).backward()
    wrapped(batches[2]).backward()
    result: dict[str, Any] = {"expected": state(wrapped.module)}
    for keep in (False, True):
        model = Layers(rank)
        exchange = by_hand(model, batches, keep)
        result[f"found {keep}"] = state(model)
        result["starts"] = [parameter.grad.storage_offset() for parameter in model.parameters()]
    model.zero_grad()
    model.first.requires_grad_(False)
    model(batches[0]).backward()
    exchange.average()
    result["frozen"] = state(model)
    model.zero_grad()
    with pytest.raises(ValueError, match="no gradient") as error:
        exchange.average()
    torch.save(result | {"message": str(error.value)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def state(model: nn.Module) -> dict[str, Tensor | None]:
    """Weights and buffers by name, and the gradients beside them."""
    named = {name: value.clone() for name, value in model.state_dict().items()}
    return named | {
        f"{name} gradient": p.grad if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("exchange")
    multiprocessing.spawn(process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("keep", [False, True], ids=["where they were made", "kept in their places"])
def test_gradients_and_weights_are_those_of_distributed_data_parallel(keep: bool, results) -> None:
    for result in results:
        expected, found = result["expected"], result[f"found {keep}"]
        assert expected.keys() == found.keys() and expected["seed"] == 0
        assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_each_place_is_aligned(results) -> None:
    first, second = results[0]["starts"][:2], results[0]["starts"][2:]
    assert first == second == [0, ALIGNED]


def test_what_is_frozen_is_not_exchanged(results) -> None:
    one, two = (result["frozen"] for result in results)
    assert one["first.weight gradient"] is None and two["first.bias gradient"] is None
    assert torch.equal(one["second.weight gradient"], two["second.weight gradient"])
    assert one["second.weight gradient"].abs().max() > 0


def test_a_parameter_without_a_gradient_is_named(results) -> None:
    for result in results:
        assert result["message"].startswith("second.weight learns and got no gradient: set ddp_find_unused_parameters")
