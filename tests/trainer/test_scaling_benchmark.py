"""The scaling benchmark runs the project's own command on several processes and writes whole rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/scaling_gpus.py"


@pytest.mark.slow
def test_a_rehearsal_on_two_cpu_processes(tmp_path: Path) -> None:
    options = "--cpu --gpus 1 2 --sizes tiny --engines ddp --steps 6 --kinds weak strong --seconds-a-run 1"
    environment = os.environ | {"OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *options.split()], capture_output=True, text=True, env=environment, timeout=900
    )
    assert result.returncode == 0, result.stderr[-2000:]
    last = json.loads(result.stdout.splitlines()[-1])
    rows = json.loads(Path(last["file"]).read_text())
    fields = {"name", "variant", "size", "device", "metric", "value", "n", "min", "max", "command", "commit"}
    assert all(fields <= row.keys() for row in rows)
    assert not [row["note"] for row in rows if "note" in row]
    by_metric = {(row["metric"], row["variant"].split(",")[0]): row["value"] for row in rows}
    assert by_metric[("efficiency against one GPU", "weak")] > 0
    assert by_metric[("largest difference of a loss from one GPU's", "strong")] < 1e-5
