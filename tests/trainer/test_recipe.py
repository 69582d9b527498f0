"""A recipe says what runs: types are right, overrides win, and a typo is told its mend."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from small_doge.trainer.arguments import PretrainingArguments
from small_doge.trainer.finetuning_arguments import SupervisedArguments
from small_doge.trainer.recipe import load_recipe, save_recipe


def recipe(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return ["--config", str(path), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]


def test_scientific_numbers_words_and_structures_get_the_field_types(tmp_path: Path) -> None:
    text = "learning_rate: 8e-3\nsave_strategy: no\nmax_steps: '20'\nmodel_config: {size: 20M}\nbf16: false\n"
    args = load_recipe(PretrainingArguments, recipe(tmp_path, text))
    assert args.learning_rate == 8e-3
    assert args.save_strategy == "no"
    assert args.max_steps == 20
    assert args.model_config == {"size": "20M"}


def test_the_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    argv = [*recipe(tmp_path, "learning_rate: 1e-3\n"), "--learning_rate", "4e-3", "--gradient_checkpointing=True"]
    args = load_recipe(SupervisedArguments, argv)
    assert args.learning_rate == 4e-3


@pytest.mark.parametrize(
    ("override", "auto"),
    [
        ([], True),
        (["--per_device_train_batch_size", "2"], False),
        (["--per_device_train_batch_size", "2", "--tokens", "70M"], False),
        (["--gradient_accumulation_steps", "2"], True),
        (["--per_device_train_batch_size", "2", "--auto_micro_batch", "true"], True),
        (["--per_device_train_batch_size", "2", "--memory_gib", "12"], True),
        (["--auto_find_batch_size", "true"], False),
    ],
)
def test_a_micro_batch_on_the_command_line_is_not_chosen_anew(tmp_path: Path, override: list[str], auto: bool) -> None:
    text = "auto_micro_batch: true\nmemory_gib: 12\nper_device_train_batch_size: 4\nmodel_config: {size: 20M}\n"
    args = load_recipe(PretrainingArguments, [*recipe(tmp_path, text), *override])
    assert (args.auto_micro_batch, args.memory_gib) == ((True, 12) if auto else (False, None))


def test_batches_are_copied_without_waiting_where_their_memory_is_pinned(tmp_path: Path) -> None:
    for pinned in (True, False):
        argv = [*recipe(tmp_path, f"dataloader_pin_memory: {pinned}\n")]
        assert load_recipe(PretrainingArguments, argv).accelerator_config.non_blocking is pinned
    argv = recipe(tmp_path, "accelerator_config: {non_blocking: false}\n")
    assert load_recipe(SupervisedArguments, argv).accelerator_config.non_blocking is False


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("kind", [PretrainingArguments, SupervisedArguments])
def test_a_process_uses_one_gpu_and_says_so_where_there_are_more(
    kind: type, gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    args = kind(output_dir=str(tmp_path), per_device_train_batch_size=3, bf16=False)
    assert args.n_gpu == 1 and args.train_batch_size == 3 and args.parallel_mode.value == "not_parallel"
    assert ("of 2 GPUs one is used" in caplog.text) == (gpus == 2)


def test_names_of_earlier_releases_are_understood(tmp_path: Path) -> None:
    args = load_recipe(PretrainingArguments, recipe(tmp_path, "warmup_ratio: 0.15\nmax_steps: 100\n"))
    assert args.get_warmup_steps(100) == 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1e-3\n", "did you mean 'learning_rate'"),
        ("on: 1\n", "there is no option True"),
        ("max_steps: many\n", "max_steps is 'many', which is not int"),
        ("bf16: true\nfp16: true\n", "choose one"),
        ("just a sentence\n", "holds no `name: value` lines"),
        ("a: [1\n", "is not valid YAML"),
    ],
    ids=["a typo", "a boolean for a name", "a word for a number", "both half precisions", "no mapping", "broken YAML"],
)
def test_refuses_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(PretrainingArguments, recipe(tmp_path, text))
    assert "\n" not in str(error.value)


def test_refuses_a_missing_recipe_and_a_missing_output_dir(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no recipe"):
        load_recipe(PretrainingArguments, ["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ValueError, match="no output_dir"):
        load_recipe(PretrainingArguments, ["--learning_rate", "1"])


def test_an_accelerate_option_after_the_script_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    argv = ["--config_file", "recipes/accelerate_configs/single_gpu.yaml", *recipe(tmp_path, "max_steps: 1\n")]
    with caplog.at_level(logging.WARNING):
        load_recipe(PretrainingArguments, argv)
    assert "put it before the script" in caplog.text


def test_a_changed_recipe_is_named_when_a_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    argv = recipe(tmp_path, "learning_rate: 1e-3\n")
    save_recipe(load_recipe(PretrainingArguments, argv))
    save_recipe(load_recipe(PretrainingArguments, argv))
    assert "differs" not in caplog.text
    save_recipe(load_recipe(PretrainingArguments, [*argv, "--learning_rate", "2e-3"]))
    assert "differs from the run" in caplog.text
    assert "learning_rate" in caplog.text
