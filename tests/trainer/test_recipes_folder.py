"""Every recipe in the repository is one that its stage accepts, and says the seeds' numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from small_doge import DogeConfig
from small_doge.trainer.arguments import PretrainingArguments
from small_doge.trainer.doge.pt import main
from small_doge.trainer.finetuning_arguments import (
    LogitArguments,
    PreferenceArguments,
    ReinforcementArguments,
    SupervisedArguments,
)
from small_doge.trainer.footprint import activation_bytes_per_token, largest_micro_batch, state_bytes
from small_doge.trainer.recipe import load_recipe
from small_doge.utils.scaling_laws import plan

ROOT = Path(__file__).parents[2]
RECIPES = [
    *sorted((ROOT / "recipes" / "doge").rglob("*.yaml")),
    *sorted((ROOT / "recipes" / "wonderful_matrices").rglob("*.yaml")),
    *sorted((ROOT / "src" / "small_doge" / "quickstart" / "recipes").glob("*.yaml")),
]
KINDS = {"sft": SupervisedArguments, "dpo": PreferenceArguments, "grpo": ReinforcementArguments}
FOLDERS = KINDS | {"distill": LogitArguments}
QUICKSTART = KINDS | {"distill": SupervisedArguments}


def kind_of(path: Path) -> type:
    return FOLDERS.get(path.parent.name) or QUICKSTART.get(path.stem) or PretrainingArguments


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


@pytest.mark.parametrize("size", ["20M", "60M", "160M", "320M"])
def test_muon_recipes_hold_the_plan_of_their_budget(size: str) -> None:
    values = yaml.safe_load((ROOT / f"recipes/doge/Doge-{size}/config_muon.yaml").read_text())
    budget = plan(size, 70e6, "muon")
    assert values["optimizer"] == "muon"
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == budget.rows == 64
    assert values["max_steps"] == budget.steps
    assert float(values["muon_learning_rate"]) == budget.muon_learning_rate == 0.02
    assert float(values["learning_rate"]) == budget.learning_rate


@pytest.mark.parametrize(("size", "gigabytes"), [("20M", 8), ("60M", 16), ("160M", 24)])
def test_card_recipes_fit_by_the_formula_and_change_the_micro_batch_only(size: str, gigabytes: int) -> None:
    folder = ROOT / f"recipes/doge/Doge-{size}"
    full = yaml.safe_load((folder / "config_full.yaml").read_text())
    card = yaml.safe_load((folder / f"config_{gigabytes}gb.yaml").read_text())
    assert card["per_device_train_batch_size"] <= largest_micro_batch(DogeConfig.from_size(size), gigabytes)
    micro = ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size")
    # The card's recipe states its micro-batch, and what it takes; the full one leaves it to the formula.
    assert full.pop("auto_micro_batch") and "auto_micro_batch" not in card
    assert card | dict.fromkeys(micro) == full | dict.fromkeys(micro)
    assert card[micro[0]] * card[micro[1]] == full[micro[0]] * full[micro[1]]


@pytest.mark.parametrize(("size", "gigabytes"), [("20M", 8), ("60M", 16), ("160M", 24)])
def test_the_memory_that_a_card_recipe_states_is_recomputed(size: str, gigabytes: int) -> None:
    path = ROOT / f"recipes/doge/Doge-{size}/config_{gigabytes}gb.yaml"
    text = path.read_text().replace("\n# ", " ")
    config = DogeConfig.from_size(size)
    state, row = state_bytes(config) / 2**30, 2048 * activation_bytes_per_token(config) / 2**30
    rows = yaml.safe_load(path.read_text())["per_device_train_batch_size"]
    most = largest_micro_batch(config, gigabytes)
    assert f"18 bytes a parameter for weights, gradients, moments and copies = {state:.2f} GiB" in text
    assert f"= {row:.2f} GiB a row of activations: {rows} rows take {state + rows * row:.1f} GiB." in text
    assert f"{most} rows would fill nine tenths of the card less 1 GiB" in text


def test_the_memory_that_the_preference_recipe_states_is_recomputed_and_fits_its_card() -> None:
    path = ROOT / "recipes/doge/Doge-160M-Instruct/dpo/config_full.yaml"
    text, values = path.read_text().replace("\n# ", " "), yaml.safe_load(path.read_text())
    config = DogeConfig.from_size("160M")
    tokens = 2 * values["per_device_train_batch_size"] * values["max_length"]
    state = state_bytes(config) / 2**30
    kept, checkpointed = (tokens * activation_bytes_per_token(config, way) / 2**30 for way in (False, True))
    assert f"18 bytes a parameter = {state:.2f} GiB" in text
    assert f"of 2 x 1,024 tokens = {kept:.2f} GiB: {state + kept:.1f} GiB, which a card of 24 GB holds" in text
    assert f"those of {tokens:,} tokens in fp32 would be {tokens * config.vocab_size * 4 / 2**30:.1f} GiB more" in text
    assert f"`gradient_checkpointing: true` brings the activations to {checkpointed:.2f} GiB" in text
    assert 2 * values["per_device_train_batch_size"] <= largest_micro_batch(config, 24, values["max_length"])
    assert not values.get("gradient_checkpointing")


GUIDE_OVERRIDES = (
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --gradient_checkpointing True "
    "--learning_rate 5e-4 --warmup_ratio 0.15 --weight_decay 0.05 --bf16 False --torch_compile False "
    "--dataloader_num_workers 0"
)
MEMORY_OPTIONS = {
    "gradient_checkpointing": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "dataloader_pin_memory": False,
    "dataloader_num_workers": 0,
    "optim": "adamw_torch_fused",
}


def test_the_guides_overrides_are_understood(tmp_path: Path) -> None:
    argv = ["--config", str(ROOT / "recipes/doge/Doge-20M/config_full.yaml"), "--output_dir", str(tmp_path)]
    args = load_recipe(PretrainingArguments, [*argv, "--use_cpu", "true", *GUIDE_OVERRIDES.split()])
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    assert not args.auto_micro_batch
    assert (args.learning_rate, args.weight_decay, args.get_warmup_steps(8000)) == (5e-4, 0.05, 1200)
    assert not args.bf16


def test_the_guides_memory_options_train_to_the_same_loss(recipe) -> None:
    main(recipe("thrifty", max_steps=2, save_strategy="no", **MEMORY_OPTIONS))
    plain = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    main(recipe("plain", max_steps=2, save_strategy="no", **plain))
    assert recipe.log("thrifty") == pytest.approx(recipe.log("plain"), rel=1e-5)


def test_the_page_on_post_training_names_recipes_that_their_stages_accept(tmp_path: Path) -> None:
    page = (ROOT / "docs/posttraining.md").read_text()
    commands = re.findall(r"^small-doge train (\w+) --config (\S+)$", page, re.M)
    assert {stage for stage, _ in commands} == {"sft", "dpo", "distill", "grpo"}
    options = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    for stage, recipe in commands:
        load_recipe(FOLDERS[stage], ["--config", str(ROOT / recipe), *options])
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    whole = yaml.safe_load((ROOT / "recipes/doge/Doge-20M-Reason/grpo/config_curriculum.yaml").read_text())
    assert yaml.safe_load(shown).items() <= whole.items()
