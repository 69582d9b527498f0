"""benchmarks/mqar.py runs in a tiny setting on a CPU, and its last line is the rows."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "mqar.py"
TINY = "--vocab 32 --layers 1 --widths 16 --head-size 16 --lrs 1e-3 1e-2 --steps 4 --batch 8 --check-every 2"


@pytest.mark.parametrize("task", ["mqar --length 16 --pairs 4 --windows 8", "needle --length 24 --windows 12"])
def test_every_arm_is_swept_and_the_last_line_is_json(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--test-sequences", "16", "--device", "cpu", "--attention", "eager", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--task", *task.split(), *TINY.split(), *options])
    # It would last beyond the test.
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    runpy.run_path(str(SCRIPT))["main"]()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(rows) == 3 * 2
    arms = {row["variant"].split(",")[0] for row in rows}
    assert arms == {"doge", "plain causal"}
    assert sum(row["chosen"] for row in rows) == 3
    for row in rows:
        assert {"name", "variant", "size", "device", "metric", "value", "n", "min", "max", "command", "commit"} <= set(
            row
        )
        assert row["ci95"][0] <= row["value"] <= row["ci95"][1]
        if row["variant"].startswith("plain"):
            assert not any(row["A"])
    assert json.loads(next(tmp_path.glob("*.json")).read_text()) == rows
