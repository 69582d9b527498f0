"""The benchmark of DPO's memory runs the recipe's stage on pairs that fill its context."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from small_doge import DogeConfig
from small_doge.trainer.footprint import activation_bytes_per_token, state_bytes

SCRIPT = Path(__file__).parents[2] / "benchmarks/dpo_memory.py"


def test_every_pair_fills_the_context_and_the_formula_stands_beside_the_peak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    from_size = DogeConfig.from_size
    monkeypatch.setattr(DogeConfig, "from_size", lambda size, **fields: from_size(size, **fields, **tiny))
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    recipe = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_length": 48}
    options = [part for name, value in recipe.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--size", "20M", "--steps", "2", *options])
    runpy.run_path(str(SCRIPT))["main"]()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["tokens a pair"] == 2 * 48
    config = DogeConfig.from_size("20M")
    bytes_needed = state_bytes(config) + 2 * 2 * 48 * activation_bytes_per_token(config)
    assert found["derived GiB"] == pytest.approx(bytes_needed / 2**30, abs=0.01)
    assert found["peak GiB"] is None or found["peak GiB"] > 0
