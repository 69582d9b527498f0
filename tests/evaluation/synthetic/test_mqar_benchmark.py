"""benchmarks/mqar.py runs in a tiny setting on a CPU, and its last line is the rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "mqar.py"
TINY = "--vocab 32 --layers 1 --widths 16 --head-size 16 --lrs 1e-3 1e-2 --steps 4 --batch 8 --check-every 2"


@pytest.mark.parametrize("task", ["mqar --length 16 --pairs 4 --windows 8", "needle --length 24 --windows 12"])
def test_every_arm_is_swept_and_the_last_line_is_json(task, tmp_path):
    command = [sys.executable, str(SCRIPT), "--task", *task.split(), *TINY.split()]
    run = subprocess.run(
        [*command, "--test-sequences", "16", "--device", "cpu", "--attention", "eager", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout.splitlines()[-1])
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
