"""The server's benchmark counts what the streams brought, in a row for each figure."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parents[2] / "benchmarks/serving.py")


@pytest.mark.slow
def test_every_number_of_streams_has_its_rows(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--dtypes fp32 --streams 1 3 --tokens 8 --rounds 2 --out"
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(model_folder), *options.split(), str(tmp_path)])
    monkeypatch.syspath_prepend(str(Path(SCRIPT).parent))
    script = runpy.run_path(SCRIPT)
    script["main"]()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = json.loads((tmp_path / last["file"]).read_text())
    assert {(row["variant"], row["metric"]) for row in rows} == {
        (f"fp32, {streams} streams", metric) for streams in (1, 3) for metric in script["METRICS"]
    }
    assert all(row["n"] == 2 and 0 < row["min"] <= row["value"] <= row["max"] for row in rows)
