"""The benchmark of the GRPO stage runs the stage itself, and writes no row where the engine and the model disagree."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from small_doge import DogeConfig
from small_doge.rewards import REWARDS
from small_doge.trainer.doge import grpo

SCRIPT = str(Path(__file__).parents[2] / "benchmarks/rollouts_trl.py")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script's functions for a tiny model and tokenizer, with a command line for two short steps."""
    monkeypatch.syspath_prepend(str(Path(SCRIPT).parent))
    functions = runpy.run_path(SCRIPT)
    train = functions["train_tokenizer"]
    monkeypatch.setitem(
        functions["save_random_model"].__globals__, "train_tokenizer", lambda texts, vocab_size: train(texts[:1], 512)
    )
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tiny["vocab_size"] = 512
    from_size = DogeConfig.from_size
    monkeypatch.setattr(DogeConfig, "from_size", lambda size, **fields: from_size(size, **fields, **tiny))
    monkeypatch.setattr(grpo, "ReinforcementTrainer", grpo.ReinforcementTrainer)
    monkeypatch.setitem(REWARDS, "letters", functions["letters"])
    options = "--sizes 20M --rollouts 16 --micro-batch 8 --tokens 6 --steps 2 --out"
    monkeypatch.setattr(sys, "argv", [SCRIPT, *options.split(), str(tmp_path)])
    return functions


def test_it_times_the_stage_and_compares_its_log_probabilities(
    script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script["main"]()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["metric"]: row for row in json.loads((tmp_path / last["file"]).read_text())}
    assert set(rows) == set(script["METRICS"].values())
    assert all(row["n"] == 2 and row["min"] <= row["value"] <= row["max"] and row["commit"] for row in rows.values())
    assert rows["step seconds"]["value"] > 16 * 6 / rows["rollout tokens/s"]["max"], "a step holds its rollouts"
    assert 0 < rows["largest log-probability difference"]["max"] < 1e-4


def test_no_row_is_written_where_they_differ(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = grpo.SlotRollouts.__call__

    def wrong(self: Any, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        drawn = draw(self, prompts, trainer)
        return drawn | {"logprobs": [[value - 1 for value in row] for row in drawn["logprobs"]]}

    monkeypatch.setattr(grpo.SlotRollouts, "__call__", wrong)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--steps", "1"])
    with pytest.raises(SystemExit, match=r"differ by 1.0e\+00 in the mean: no row is written"):
        script["main"]()
    assert not list(tmp_path.glob("*.json"))
