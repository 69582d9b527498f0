"""The memory formula is what autograd really keeps."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from small_doge import DogeConfig, DogeForCausalLM
from small_doge.trainer.footprint import (
    RESERVE_BYTES,
    USABLE_SHARE,
    activation_bytes_per_token,
    largest_micro_batch,
    state_bytes,
    training_bytes,
)


def kept_bytes(config: DogeConfig, rows: int, autocast: bool, length: int = 128) -> int:
    """Bytes of the distinct storages that a forward pass keeps for its backward pass, weights left out."""
    model = DogeForCausalLM(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, config.vocab_size, (rows, length))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        model(input_ids=ids, labels=ids, loss_only=True)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("width", "mlp", "heads", "kv", "layers"),
    [(256, 512, 2, 1, 2), (512, 512, 4, 2, 1), (128, 512, 2, 2, 3)],
    ids=["the 20M's layers", "as many heads as the 60M", "a wide MLP"],
)
@pytest.mark.parametrize("autocast", [True, False], ids=["bf16", "fp32"])
def test_activations(width: int, mlp: int, heads: int, kv: int, layers: int, autocast: bool) -> None:
    config = DogeConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        num_hidden_layers=layers,
        tie_word_embeddings=True,
    )
    # The difference of two batches leaves out what does not grow with them, such as autocast's copies of the weights.
    a_token = (kept_bytes(config, 4, autocast) - kept_bytes(config, 2, autocast)) / (2 * 128)
    assert activation_bytes_per_token(config, autocast=autocast) == pytest.approx(a_token, rel=0.05)


def test_state_of_the_20m() -> None:
    config = DogeConfig.from_size("20M")
    assert state_bytes(config) == 18 * 13_118_728
    assert state_bytes(config, autocast=False) == 16 * 13_118_728
    assert state_bytes(config, "muon") == 18 * 13_118_728 - 4 * (13_118_728 - 32_768 * 256)


@pytest.mark.parametrize(
    ("size", "rows", "peak"),
    [
        ("20M", 64, 8.81),  # The bare step.
        ("20M", 256, 32.29),
        ("60M", 32, 16.6),  # The bare step.
        ("60M", 64, 32.40),
        ("160M", 32, 37.44),
        ("160M", 48, 54.49),
        ("160M", 64, 71.55),
        ("320M", 16, 33.3),  # The bare step.
        ("320M", 32, 66.22),
    ],
)
def test_a_compiled_model_took_what_is_derived_or_less(size: str, rows: int, peak: float) -> None:
    """Peaks on an H100 in GiB (LEADERBOARD.md), of the command where nothing else is said."""
    derived = training_bytes(DogeConfig.from_size(size), rows, compiled=True) / 2**30
    assert peak < derived + RESERVE_BYTES / 2**30 and derived < 1.25 * peak


@pytest.mark.parametrize("changes", [{"checkpointing": True}, {"autocast": False}], ids=str)
def test_what_was_not_measured_counts_as_uncompiled(changes: dict[str, bool]) -> None:
    config = DogeConfig.from_size("20M")
    assert training_bytes(config, 8, compiled=True, **changes) == training_bytes(config, 8, **changes)


def test_a_larger_card_and_checkpointing_hold_more() -> None:
    config = DogeConfig.from_size("160M")
    rows = [largest_micro_batch(config, size) for size in (4, 8, 16, 24)]
    assert rows == sorted(rows)
    assert largest_micro_batch(config, 8, checkpointing=True) > rows[1]
    assert largest_micro_batch(DogeConfig.from_size("320M"), 4) == 0


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: torch brings it on Linux")
@pytest.mark.parametrize("gibibytes", [10, 80], ids=["an eighth of an H100", "an H100"])
@pytest.mark.parametrize(
    "way", [{}, {"checkpointing": True}, {"compiled": True}], ids=["every activation", "checkpointing", "compiled"]
)
@pytest.mark.parametrize("size", ["20M", "60M", "160M", "320M"])
def test_the_fused_backward_of_attention_fits_what_is_kept_free(
    size: str, way: dict[str, bool], gibibytes: int
) -> None:
    from small_doge.ops.dynamic_mask_attention.triton_attention import MOST_KEPT

    config = DogeConfig.from_size(size)
    rows = largest_micro_batch(config, gibibytes, 2048, **way)
    kept = rows * config.num_attention_heads * 2048 * 2048
    room = RESERVE_BYTES + (1 - USABLE_SHARE) * gibibytes * 2**30
    assert min(kept, MOST_KEPT) < 0.75 * room


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
@pytest.mark.parametrize("size", ["20M", "60M", "160M", "320M"])
def test_the_pages_table_of_cards_is_recomputed(size: str, page: str) -> None:
    config = DogeConfig.from_size(size)
    ways: list[dict[str, bool]] = [{}, {"compiled": True}, {"checkpointing": True}]
    rows = [[largest_micro_batch(config, card, **way) for way in ways] for card in (8, 16, 24)]
    cells = ("{}, {} ({})".format(*found) for found in rows)
    text = (Path(__file__).parents[2] / "recipes/doge" / page).read_text()
    assert f"| Doge-{size} | {' | '.join(cells)} |" in text
