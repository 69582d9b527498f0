"""A run that goes wrong stops with the step, the rows and the gradient norms written down."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.trainer.checkpoints import last_checkpoint
from small_doge.trainer.doge.pt import main
from small_doge.trainer.gradient_norms import GradientNorms
from small_doge.trainer.guards import FAILURE_FILE, StepWatch, rows_of_step


def poisoned_model(folder: Path, fields: dict, tokenizer_folder: Path, token: int) -> Path:
    """A checkpoint whose loss is no number as soon as a batch holds `token`."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig(**fields, tie_word_embeddings=False, pad_token_id=2))
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.nan
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(tokenizer_folder)).save_pretrained(str(folder))
    return folder


def data_with(token: int, row: int, folder: Path, rows_folder: Path) -> Path:
    from datasets import Dataset, DatasetDict, load_from_disk

    rows = load_from_disk(str(rows_folder))["train"].to_dict()
    rows["input_ids"][row][16] = token
    DatasetDict({"train": Dataset.from_dict(rows)}).save_to_disk(str(folder))
    return folder


def test_a_loss_that_is_no_number_names_its_step_and_rows(recipe, rows_folder, tokenizer_folder, tmp_path) -> None:
    model = poisoned_model(tmp_path / "model", recipe.values["model_config"], tokenizer_folder, token=400)
    data = data_with(400, row=17, folder=tmp_path / "data", rows_folder=rows_folder)
    changes = {"model_config": None, "model_name_or_path": str(model), "dataset": str(data), "logging_steps": 5}
    with pytest.raises(ValueError, match=r"the loss became nan at step \d+; its rows") as error:
        main(recipe("run", **changes))
    failure = json.loads((tmp_path / "run" / FAILURE_FILE).read_text())
    assert 17 in failure["rows"]
    assert len(failure["rows"]) == 4
    assert f"at step {failure['step']};" in str(error.value)
    assert [entry["step"] for entry in failure["recent"]] == list(range(1, failure["step"] + 1))
    assert all(entry["grad_norm"] > 0 for entry in failure["recent"][:-1])
    gradients = failure["gradients"]
    assert 0 < gradients["not_finite"] <= gradients["parameters"]
    assert gradients["first_not_finite"][0] == "model.embed_tokens.weight"
    kept = last_checkpoint(tmp_path / "run")
    assert kept is None or int(kept.rsplit("-", 1)[1]) < failure["step"]


@pytest.mark.parametrize("clipped", [1.0, 0.0], ids=["clipped", "not clipped"])
def test_the_one_parameter_whose_gradient_is_no_number_is_named(recipe, monkeypatch, clipped: float) -> None:
    from small_doge.trainer.doge import pt

    load_model = pt.load_model
    steps = itertools.count(1)

    def spoilt(*args):
        model = load_model(*args)
        weight = model.model.layers[1].mlp.up_proj.weight
        weight.register_hook(lambda gradient: gradient * torch.nan if next(steps) == 5 else gradient)
        return model

    monkeypatch.setattr(pt, "load_model", spoilt)
    changes = {"gradient_accumulation_steps": 1, "logging_steps": 3, "save_strategy": "no", "max_grad_norm": clipped}
    with pytest.raises(ValueError, match="the gradient norm became nan at step 5; its rows and gradients"):
        main(recipe("run", **changes))
    gradients = json.loads((recipe.folder / "run" / FAILURE_FILE).read_text())["gradients"]
    assert gradients["not_finite"] == 1
    assert gradients["first_not_finite"] == ["model.layers.1.mlp.up_proj.weight"]
    largest = list(gradients["largest"].values())
    assert len(largest) == 10 < gradients["parameters"]
    assert largest == sorted(largest, reverse=True)
    assert largest[-1] > 0


class Trainer:
    """As much of a trainer as the watch asks for."""

    accelerator = SimpleNamespace(reduce=lambda tensor, how: tensor)

    def get_train_dataloader(self) -> object:
        return SimpleNamespace()


def watch_losses(losses: list[float], spike: float, folder: Path, norm: float = 1.0, fp16: bool = False) -> None:
    trainer = Trainer()
    trainer.args = SimpleNamespace(gradient_accumulation_steps=1, fp16=fp16)
    watch = StepWatch(trainer, spike)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    for loss in losses:
        watch.add_loss(torch.tensor(loss / 2))
        watch.add_loss(torch.tensor(loss / 2))
        watch.end_step(norm)
        state.global_step += 1
        watch.on_log(SimpleNamespace(output_dir=str(folder)), state, SimpleNamespace())


def test_a_spike_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the loss rose to 5\.100 from a median of 3\.000 at step 21"):
        watch_losses([3.0] * 20 + [5.1], 2.0, tmp_path)
    failure = json.loads((tmp_path / FAILURE_FILE).read_text())
    assert failure["recent"][-1] == {"step": 21, "loss": pytest.approx(5.1), "grad_norm": 1.0}


def test_no_spike_is_seen_in_a_falling_loss_at_the_start_or_when_turned_off(tmp_path: Path) -> None:
    watch_losses([10.0 - 0.1 * step for step in range(60)], 2.0, tmp_path)
    watch_losses([3.0] * 5 + [9.0], 2.0, tmp_path)
    watch_losses([3.0] * 20 + [9.0], 0.0, tmp_path)


def test_an_overflow_stops_a_run_but_for_fp16_whose_scaler_expects_it(tmp_path: Path) -> None:
    watch_losses([3.0] * 3, 2.0, tmp_path, norm=float("inf"), fp16=True)
    with pytest.raises(ValueError, match="the gradient norm became inf at step 1"):
        watch_losses([3.0] * 3, 2.0, tmp_path, norm=float("inf"))


def _sharded_norms(rank: int, store: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 7)
    whole = GradientNorms.of(with_gradients(model))
    for name, p in list(model.named_parameters()):
        gradient = distribute_tensor(p.grad, mesh, [Shard(0)])
        setattr(model, name, torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
        getattr(model, name).grad = gradient
    accelerator = SimpleNamespace(reduce=lambda tensor, how: dist.all_reduce(tensor) or tensor)
    sharded = GradientNorms.of(model).summary(accelerator)
    assert sharded["largest"] == pytest.approx(whole.summary(accelerator)["largest"], rel=1e-6)
    dist.destroy_process_group()


def with_gradients(model: torch.nn.Module) -> torch.nn.Module:
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


@pytest.mark.slow
def test_sharded_gradients_have_the_norms_of_whole_ones(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_sharded_norms, (str(tmp_path / "store"),), nprocs=2)


def test_rows_of_a_step_are_those_that_the_loader_gives(recipe, monkeypatch) -> None:
    from small_doge.trainer.doge import pt

    seen = []

    class Recording(pt.PretrainingTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(inputs["input_ids"].clone())
            return super().training_step(model, inputs, *args, **kwargs)

        def train(self, *args, **kwargs):
            result = super().train(*args, **kwargs)
            for step in (1, 2, 12, 13, 14):
                rows = rows_of_step(self, step)
                expected = torch.tensor([list(self.train_dataset[row]["input_ids"]) for row in rows])
                assert torch.equal(torch.cat(seen[2 * step - 2 : 2 * step]), expected)
            return result

    monkeypatch.setattr(pt, "PretrainingTrainer", Recording)
    main(recipe("run", max_steps=14, save_strategy="no"))
    assert len(seen) == 28
