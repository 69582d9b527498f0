"""The largest micro-batch that fits is chosen, and the step stays as the recipe has it."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import yaml

from small_doge import DogeConfig, WonderfulMatricesConfig
from small_doge.trainer import micro_batch
from small_doge.trainer.doge.pt import main
from small_doge.trainer.footprint import activation_bytes_per_token, largest_micro_batch, state_bytes
from small_doge.trainer.micro_batch import choose_micro_batch

DOGE = DogeConfig.from_size("20M")


def arguments(**changes: object) -> SimpleNamespace:
    values = {
        "auto_micro_batch": True,
        "auto_find_batch_size": False,
        "memory_gib": None,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 16,
        "optimizer": "adamw",
        "gradient_checkpointing": False,
        "bf16": True,
        "fp16": False,
        "compile_layers": False,
        "device": torch.device("cuda:0"),
    }
    return SimpleNamespace(**values | changes)


def chosen(args: SimpleNamespace, config: object = DOGE) -> tuple[int, int]:
    choose_micro_batch(args, config, 2048)
    return args.per_device_train_batch_size, args.gradient_accumulation_steps


@pytest.mark.parametrize(
    ("gibibytes", "micro"),
    [(4, 8), (8, 16), (12, 32), (24, 64), (80, 256)],
    ids=["a card of 4 GiB", "of 8", "of 12", "of 24", "of 80, the whole step at once"],
)
def test_the_cards_memory_decides(gibibytes: int, micro: int, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(total_memory=gibibytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert micro <= largest_micro_batch(DOGE, gibibytes) < 2 * micro or micro == 256
    assert chosen(arguments()) == (micro, 256 // micro)


def test_all_processes_divide_as_the_smallest_card_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(micro_batch, "gather_object", lambda own: [*own, 8.0])
    assert chosen(arguments()) == (16, 16)


def test_stated_memory_wins_over_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    assert chosen(arguments(memory_gib=8)) == (16, 16)


@pytest.mark.parametrize(
    ("changes", "micro"),
    [({"gradient_checkpointing": True}, 64), ({"bf16": False}, 8), ({"fp16": True, "bf16": False}, 16)],
    ids=["gradient checkpointing keeps less", "fp32 keeps more", "fp16 keeps what bf16 does"],
)
def test_what_the_recipe_keeps_decides_too(changes: dict, micro: int) -> None:
    assert chosen(arguments(memory_gib=7)) == (16, 16)
    assert chosen(arguments(memory_gib=7, **changes)) == (micro, 256 // micro)


@pytest.mark.parametrize(
    ("size", "rows", "micro"), [("20M", 256, 256), ("60M", 512, 128), ("160M", 768, 48), ("320M", 1024, 16)]
)
def test_compiled_models_take_their_rows_on_a_card_of_80_gigabytes(size: str, rows: int, micro: int) -> None:
    args = arguments(memory_gib=79.2, compile_layers=True, per_device_train_batch_size=rows)
    args.gradient_accumulation_steps = 1
    assert chosen(args, DogeConfig.from_size(size)) == (micro, rows // micro)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: torch brings it on Linux")
def test_on_a_larger_card_attention_keeps_its_fused_backward() -> None:
    args = arguments(memory_gib=139, compile_layers=True, per_device_train_batch_size=768)
    args.gradient_accumulation_steps = 1
    # By memory it would be 96.
    assert chosen(args, DogeConfig.from_size("160M")) == (64, 12)


def test_a_compiled_model_on_a_cpu_counts_as_any() -> None:
    there = arguments(memory_gib=8, compile_layers=True)
    here = arguments(memory_gib=8, compile_layers=True, device=torch.device("cpu"))
    assert (chosen(there), chosen(here)) == ((32, 8), (16, 16))


def test_a_window_shorter_than_the_rows_counts_as_uncompiled() -> None:
    args = arguments(memory_gib=8, compile_layers=True)
    assert chosen(args, DogeConfig.from_size("20M", keep_window_size=512)) == (16, 16)


def test_a_cpu_keeps_the_recipes_micro_batch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert chosen(arguments(device=torch.device("cpu"))) == (16, 16)
    assert "the recipe's micro-batch stays" in caplog.text


def test_rows_that_two_does_not_divide() -> None:
    assert chosen(arguments(memory_gib=8, per_device_train_batch_size=1, gradient_accumulation_steps=289)) == (17, 17)


def test_nothing_is_chosen_unasked() -> None:
    assert chosen(arguments(auto_micro_batch=False)) == (16, 16)


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"memory_gib": 1.3}, DOGE, "not one row of 2048 tokens fits 1.3 GiB: .* set gradient_checkpointing: true"),
        (
            {"memory_gib": 8, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 257},
            DOGE,
            "24 rows would fit, but the 257 rows of a step divide one by one only: .* such as 258",
        ),
        ({"memory_gib": 8, "auto_micro_batch": False}, DOGE, "set auto_micro_batch: true, or drop it"),
        (
            {"memory_gib": 8, "auto_find_batch_size": True},
            DOGE,
            "drop auto_find_batch_size, or set auto_micro_batch: false",
        ),
        (
            {"memory_gib": 8},
            DogeConfig.from_size("20M-MoE"),
            "a Doge without experts only: set auto_micro_batch: false",
        ),
        (
            {"memory_gib": 8},
            WonderfulMatricesConfig.from_size("25M"),
            "a Doge without experts only: set auto_micro_batch: false",
        ),
    ],
    ids=[
        "no row fits",
        "a prime number of rows",
        "memory that nothing reads",
        "beside transformers' own way",
        "a mixture",
        "the first generation",
    ],
)
def test_refuses_in_one_line(changes: dict, config: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        chosen(arguments(**changes), config)
    assert "\n" not in str(error.value)


def test_the_losses_are_the_recipes(recipe) -> None:
    config = DogeConfig(**recipe.values["model_config"], tie_word_embeddings=True)
    # Memory for five rows of 32 tokens, of which the four of a step are taken at once.
    used = state_bytes(config, autocast=False) + 5 * 32 * activation_bytes_per_token(config, autocast=False)
    gibibytes = (used + 2**30) / 0.9 / 2**30
    main(recipe("plain", max_steps=3, save_strategy="no"))
    main(recipe("auto", max_steps=3, save_strategy="no", auto_micro_batch=True, memory_gib=gibibytes))
    ran = yaml.safe_load((recipe.folder / "auto" / "recipe.yaml").read_text())
    assert (ran["per_device_train_batch_size"], ran["gradient_accumulation_steps"]) == (4, 1)
    assert recipe.log("auto") == pytest.approx(recipe.log("plain"), rel=1e-5)
