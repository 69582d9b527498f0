"""Every recipe in the repository is one that its stage accepts, and says the seeds' numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from small_doge.trainer.arguments import PretrainingArguments
from small_doge.trainer.finetuning_arguments import (
    PreferenceArguments,
    ReinforcementArguments,
    SupervisedArguments,
)
from small_doge.trainer.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = [
    *sorted((ROOT / "recipes" / "doge").rglob("*.yaml")),
    *sorted((ROOT / "recipes" / "wonderful_matrices").rglob("*.yaml")),
    *sorted((ROOT / "src" / "small_doge" / "quickstart" / "recipes").glob("*.yaml")),
]
KINDS = {"sft": SupervisedArguments, "distill": SupervisedArguments, "dpo": PreferenceArguments}
KINDS |= {"grpo": ReinforcementArguments}


def kind_of(path: Path) -> type:
    return KINDS.get(path.parent.name) or KINDS.get(path.stem) or PretrainingArguments


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "/".join(path.parts[-3:]))
def test_recipe_is_accepted(path: Path, tmp_path: Path) -> None:
    # This machine may have no GPU; what the recipe says beside that is what counts.
    argv = ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    if kind_of(path) is SupervisedArguments:
        argv += ["--model_name_or_path", "somewhere"]
    load_recipe(kind_of(path), argv)


@pytest.mark.parametrize(
    ("size", "steps", "rows", "rate"),
    [("20M", 8000, 256, 8e-3), ("60M", 16000, 512, 6e-3), ("160M", 24000, 768, 4e-3), ("320M", 32000, 1024, 2e-3)],
)
def test_pretraining_recipes_hold_the_seeds_budget(size: str, steps: int, rows: int, rate: float) -> None:
    values = yaml.safe_load((ROOT / f"recipes/doge/Doge-{size}/config_full.yaml").read_text())
    assert values["max_steps"] == steps
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == rows
    assert float(values["learning_rate"]) == rate
    assert (values["warmup_steps"], values["decay_steps"], values["weight_decay"]) == (0.1, 0.1, 0.01)


def test_the_reasoning_models_earlier_name_finds_their_recipe(tmp_path: Path) -> None:
    path = ROOT / "recipes/doge/Doge-20M-R1/grpo/config_full.yaml"
    assert not path.exists()
    args = load_recipe(
        ReinforcementArguments,
        ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"],
    )
    assert args.num_generations == 8
