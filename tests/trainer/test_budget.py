"""`--tokens` derives batch, steps and rates; what the command line gives wins over it, the recipe does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_doge.trainer.arguments import PretrainingArguments
from small_doge.trainer.budget import options_for_tokens, released_size, token_count
from small_doge.trainer.recipe import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes/doge/Doge-20M/config_full.yaml"


def arguments(tmp_path: Path, *options: str) -> PretrainingArguments:
    argv = ["--config", str(RECIPE), "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", *options]
    return load_recipe(PretrainingArguments, argv)


def test_a_short_budget_gets_a_small_batch(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--tokens", "70M")
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * 2048 == 2**17
    assert args.max_steps == 534
    assert args.learning_rate == 8e-3
    assert args.save_steps == 53


def test_the_command_line_wins_over_the_budget(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--tokens", "70e6", "--learning_rate", "1e-3", "--max_steps", "20")
    assert (args.learning_rate, args.max_steps, args.gradient_accumulation_steps) == (1e-3, 20, 4)


@pytest.mark.parametrize(("micro_batch", "expected"), [("48", (32, 2)), ("64", (64, 1)), ("2", (2, 32))])
def test_a_micro_batch_on_the_command_line_keeps_the_rows_of_a_step(
    tmp_path: Path, micro_batch: str, expected: tuple[int, int]
) -> None:
    args = arguments(tmp_path, "--tokens", "70M", "--per_device_train_batch_size", micro_batch)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == expected
    assert args.max_steps == 534


def test_an_accumulation_beside_a_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drop gradient_accumulation_steps"):
        arguments(tmp_path, "--tokens", "70M", "--gradient_accumulation_steps", "2")


def test_processes_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    values = {"tokens": "70M", "model_config": {"size": "20M"}, "per_device_train_batch_size": 32}
    derived = options_for_tokens(values)
    assert derived["per_device_train_batch_size"] * derived["gradient_accumulation_steps"] * 4 == 64


def test_a_model_of_ones_own_is_planned_as_the_nearest_size() -> None:
    assert released_size({"size": "160M"}) == "160M"
    assert released_size({"hidden_size": 512, "num_hidden_layers": 14, "intermediate_size": 1024}) == "60M"


@pytest.mark.parametrize(("text", "tokens"), [("70M", 70e6), ("4b", 4e9), ("1e9", 1e9), (5e8, 5e8)], ids=str)
def test_token_counts_are_read_as_written(text: object, tokens: float) -> None:
    assert token_count(text) == tokens


@pytest.mark.parametrize("text", ["many", "-3M", "0", "nan", "M", True], ids=str)
def test_refuses_what_is_no_number_of_tokens(text: object) -> None:
    with pytest.raises(ValueError, match="give a number such as 70e6"):
        token_count(text)
