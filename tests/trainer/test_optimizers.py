"""Muon is torch's own, only stacked; its AdamW part is torch's own; every parameter is in the right group."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.trainer.optimizers import Muon, muon_groups, orthogonalize
from small_doge.trainer.stage import StageTrainer, in_flattening_order


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(step: int, params: list[torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def step_alike(ours, our_params, theirs, their_params) -> None:
    """Five steps of two optimizers on the same gradients."""
    for step in range(5):
        for optimizer, params in ((ours, our_params), (theirs, their_params)):
            gradients(step, params)
            optimizer.step()


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    for shape in (matrices, matrices.mT):
        singular = torch.linalg.svdvals(orthogonalize(shape))
        assert 0.6 < singular.min() < singular.max() < 1.3


def test_muon_steps_equal_torch_muon() -> None:
    shapes = ((16, 16), (8, 32), (32, 8), (16, 16))
    ours, theirs = parameters(*shapes), parameters(*shapes)
    optimizer = Muon([{"params": ours, "lr": 0.02, "use_muon": True, "weight_decay": 0.1}])
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
    step_alike(optimizer, ours, reference, theirs)
    # torch orthogonalizes in bf16 on every device, ours in fp32 on a CPU.
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() / b.norm() < 2e-3


def test_the_other_groups_step_as_torch_adamw() -> None:
    shapes = ((7,), (5, 3))
    ours, theirs = parameters(*shapes), parameters(*shapes)
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = Muon([{"params": ours, **options}])
    reference = torch.optim.AdamW(theirs, **options)
    step_alike(optimizer, ours, reference, theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_reloaded_optimizer_goes_on_alike() -> None:
    params = parameters((6, 6), (4,))
    groups = [{"params": params[:1], "use_muon": True}, {"params": params[1:]}]
    optimizer = Muon(groups)
    for step in range(3):
        gradients(step, params)
        optimizer.step()
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = Muon([{"params": copies[:1], "use_muon": True}, {"params": copies[1:]}])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        gradients(step, params)
        gradients(step, copies)
        optimizer.step()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


def test_matrices_go_to_muon_and_everything_else_to_adamw() -> None:
    model = DogeForCausalLM(
        DogeConfig.from_size(
            "20M-MoE", vocab_size=64, num_hidden_layers=1, num_experts=16, num_experts_per_tok=2, hidden_size=32
        )
    )
    names = {id(p): name for name, p in model.named_parameters()}
    groups = muon_groups(model, muon_lr=0.02, adamw_lr=4e-3, weight_decay=0.01)
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(names)
    by_muon = {names[id(p)].split(".")[-2] for group in groups if group["use_muon"] for p in group["params"]}
    assert by_muon == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    undecayed = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert all("norm" in n or "residual" in n or n.endswith(".A") or "dt_proj" in n for n in undecayed)


def test_a_vector_is_refused_in_a_muon_group() -> None:
    with pytest.raises(ValueError, match="not a matrix"):
        Muon([{"params": parameters((3,)), "use_muon": True}])


def test_muon_is_refused_where_deepspeed_flattens_the_matrices() -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(optimizer="muon"), is_deepspeed_enabled=True)
    with pytest.raises(ValueError, match="use the ddp or fsdp config"):
        StageTrainer._new_optimizer(trainer, None)


def test_the_odd_parameters_stand_last_where_zero_lays_all_side_by_side() -> None:
    shapes = ((8, 4), (3,), (16,), (1,), (24,))
    found = [tuple(p.shape) for p in in_flattening_order(parameters(*shapes))]
    assert found == [(8, 4), (16,), (24,), (3,), (1,)]


def _sharded_steps(rank: int, store: str, shapes: tuple[tuple[int, ...], ...], expected: list[torch.Tensor]) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    params = [torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in parameters(*shapes)]
    whole = parameters(*shapes)
    optimizer = Muon([{"params": params[:3], "use_muon": True, "lr": 0.02}, {"params": params[3:], "lr": 1e-2}])
    for step in range(3):
        gradients(step, whole)
        for p, w in zip(params, whole, strict=True):
            p.grad = distribute_tensor(w.grad, mesh, [Shard(0)])
        optimizer.step()
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.full_tensor(), e)
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_parameters_step_as_whole_ones(tmp_path) -> None:
    # As FSDP2 shards them: along the rows, unevenly where they are odd.
    shapes = ((16, 16), (16, 16), (7, 32), (5,), (6, 3))
    whole = parameters(*shapes)
    optimizer = Muon([{"params": whole[:3], "use_muon": True, "lr": 0.02}, {"params": whole[3:], "lr": 1e-2}])
    for step in range(3):
        gradients(step, whole)
        optimizer.step()
    arguments = (str(tmp_path / "store"), shapes, [p.detach() for p in whole])
    torch.multiprocessing.spawn(_sharded_steps, arguments, nprocs=2)
