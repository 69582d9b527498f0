"""The CPU benchmark of the training step writes its rows, and refuses where the two models differ."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = str(Path(__file__).parents[2] / "benchmarks/train_step_cpu.py")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script's functions, uncompiled, with a command line for one small round."""
    monkeypatch.syspath_prepend(str(Path(SCRIPT).parent))
    functions = runpy.run_path(SCRIPT)
    monkeypatch.setitem(functions["main"].__globals__, "compile_layers", lambda model: None)
    options = f"--rounds 1 --steps 1 --rows 2 --length 16 --threads {torch.get_num_threads()} --out"
    monkeypatch.setattr(sys, "argv", [SCRIPT, *options.split(), str(tmp_path)])
    return functions


def test_rows_of_every_variant_are_written_and_the_last_line_is_json(
    script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script["main"]()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = json.loads((tmp_path / last["file"]).read_text())
    rates = {row["variant"].split()[0]: row for row in rows if row["metric"] == "tokens/s"}
    assert set(rates) == {"ours,", "transformers", "products"}
    assert all(row["min"] <= row["value"] <= row["max"] and row["commit"] and row["n"] == 1 for row in rows)
    assert set(last["times transformers"]) == {"ours, compiled", "ours, compiled, Muon", "products alone"}


def test_nothing_is_timed_where_the_losses_differ(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = script["models"]()
    torch.nn.init.normal_(theirs.model.embed_tokens.weight)
    monkeypatch.setitem(script["main"].__globals__, "models", lambda: (ours, theirs))
    with pytest.raises(SystemExit, match="differ from transformers': nothing is timed"):
        script["main"]()
