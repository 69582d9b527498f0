"""LoRA by option: only adapters train, a run resumes, and the finished model is a plain checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel

from small_doge.inference import load
from small_doge.models.loading import load_checkpoint
from small_doge.trainer.adapters import refuse_sharded_adapter
from small_doge.trainer.doge import dpo, grpo, sft

LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0}
SUMS = [(f"What is {a} + {b}?", str(a + b)) for a in range(4) for b in range(4)]


def say(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


ROWS = {
    "sft": [{"messages": say("user", q) + say("assistant", a)} for q, a in SUMS],
    "dpo": [
        {"prompt": say("user", q), "chosen": say("assistant", a), "rejected": say("assistant", "No.")} for q, a in SUMS
    ],
    "grpo": [{"question": q, "answer": a} for q, a in SUMS],
}


@pytest.fixture
def run(recipe, model_folder: Path, tmp_path: Path) -> Callable[..., list[float]]:
    """Runs a stage on a few sums from a tiny model and gives its losses; its folder is `tmp_path / name`."""

    def run_stage(stage, name: str = "run", **options: object) -> list[float]:
        kind = stage.__name__.rsplit(".", 1)[1]
        data = tmp_path / f"{kind}_rows"
        if not data.exists():
            DatasetDict(train=Dataset.from_list(ROWS[kind])).save_to_disk(str(data))
        start = {"model_config": None, "model_name_or_path": str(model_folder), "dataset": str(data), "max_steps": 4}
        schedule = {"lr_scheduler_type": "constant", "bf16": False, "max_length": 128 if stage is not grpo else None}
        stage.main(recipe(name, **start | schedule | LORA | options))
        return list(recipe.log(name).values())

    return run_stage


def test_only_adapters_train_and_the_finished_model_is_the_weights_with_them(run, model_folder, tmp_path) -> None:
    losses = run(sft, max_steps=12, save_strategy="no", assistant_only_loss=True)
    assert losses[-1] < losses[0] - 0.2
    finished, base = load_checkpoint(str(tmp_path / "run")), load_checkpoint(str(model_folder))
    before = base.state_dict()
    moved = {name for name, weight in finished.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[-2] for name in moved} >= {"q_proj", "v_proj", "dt_proj", "down_proj"}
    assert not any("embed" in name or "norm" in name or "lm_head" in name for name in moved)
    ids = torch.randint(3, 300, (2, 16))
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(finished.eval()(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)
    (answer,) = load(str(tmp_path / "run"), dtype="fp32").generate([say("user", SUMS[0][0])], max_new_tokens=4)
    assert isinstance(answer.text, str)


def test_named_modules_alone_get_adapters(run, model_folder, tmp_path) -> None:
    run(sft, save_strategy="no", lora_target_modules=["q_proj", "v_proj"], lora_modules_to_save=["k_norm"])
    before = load_checkpoint(str(model_folder)).state_dict()
    after = load_checkpoint(str(tmp_path / "run")).state_dict()
    moved = {name.split(".")[-2] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"q_proj", "v_proj", "k_norm"}


def test_a_stopped_run_goes_on_with_its_adapters(run) -> None:
    whole = run(sft, "whole", save_steps=2)
    run(sft, "parted", save_steps=2, max_steps=2)
    assert run(sft, "parted", save_steps=2) == whole


def test_an_adapters_checkpoint_is_refused_by_name(run, tmp_path) -> None:
    run(sft, save_steps=2)
    for folder in (tmp_path / "run" / "checkpoint-2", tmp_path / "run" / "adapter"):
        for read in (load, load_checkpoint):
            with pytest.raises(ValueError, match="holds an adapter and no model: name the folder of a fin"):
                read(str(folder))


@pytest.mark.parametrize("precomputed", [False, True], ids=["with each step", "once"])
def test_preferences_are_measured_against_the_model_without_its_adapters(run, precomputed: bool) -> None:
    losses = run(dpo, save_strategy="no", precompute_ref_log_probs=precomputed)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0]


def test_reinforcement_trains_adapters_by_transformers_rollouts_only(run, model_folder, tmp_path) -> None:
    options = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8, "beta": 0.1}
    run(grpo, save_strategy="no", max_steps=2, rollout_engine="transformers", **options)
    assert (
        load_checkpoint(str(tmp_path / "run")).num_parameters() == load_checkpoint(str(model_folder)).num_parameters()
    )
    with pytest.raises(ValueError, match="adapters stand beside them: set rollout_engine: transformers"):
        run(grpo, "other", **options)


def test_engines_that_shard_weights_are_refused(model_folder) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_checkpoint(str(model_folder)), LoraConfig(target_modules="all-linear"))
    with pytest.raises(ValueError, match="which FSDP and DeepSpeed shard: use single_gpu or ddp"):
        refuse_sharded_adapter(SimpleNamespace(model=model, is_fsdp_enabled=True, is_deepspeed_enabled=False))
