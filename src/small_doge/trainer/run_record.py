"""The run's folder: what ran, on what, from which source (`run.json`), and a page with its curves (`report.html`)."""

from __future__ import annotations

import html
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from small_doge.trainer.callbacks import LOG_FILE
from small_doge.utils.charts import curve
from small_doge.utils.hardware import device_name
from small_doge.utils.provenance import git_state, versions
from small_doge.utils.throughput import clock_time

RUN_FILE, REPORT_FILE = "run.json", "report.html"
CURVES = {
    "loss": "training loss (nats a token)",
    "eval_bits_per_byte": "held-out bits per byte",
    "eval_loss": "held-out loss",
    "reward": "mean reward",
    "grad_norm": "gradient norm before clipping",
    "learning_rate": "learning rate",
    "tokens_per_second": "training tokens/s",
}
COSTS = ("runtime", "per_second", "num_tokens", "step_time")
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr))}td{padding:.1rem 1rem .1rem 0}
svg{width:100%;height:auto}pre{overflow:auto;background:#f6f6f6;padding:1rem}"""


class RunRecord(TrainerCallback):
    """Writes down each start of a run in `run.json`."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(str(args.output_dir)) / RUN_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        starts = json.loads(path.read_text())["starts"] if path.exists() else []
        start = {
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "step": state.global_step,
            "command": sys.argv,
            "processes": args.world_size,
            "engine": str(args.distributed_state.distributed_type.value) if args.distributed_state else "NO",
            "device": device_name(args.device),
            "source": git_state(),
            "versions": versions(),
        }
        path.write_text(json.dumps({"starts": [*starts, start]}, indent=1) + "\n")


def write_report(folder: Path) -> Path:
    """Make `report.html` from what a run wrote into its folder; it needs no other file to be read."""
    lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines() if (folder / LOG_FILE).exists() else []
    log: list[dict[str, Any]] = [json.loads(line) for line in lines]
    start = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["starts"][-1]
    charts = ""
    rising = {name: f"level of {name.split('/')[1]}" for entry in log for name in entry if name.endswith("/level")}
    for name, title in (CURVES | rising).items():
        points = [(entry["step"], entry[name]) for entry in log if entry.get(name) is not None]
        if points:
            charts += f"<div>{curve(title, points)}</div>"
    facts = {**_last_figures(log), **{name: start[name] for name in ("device", "processes", "engine", "source")}}
    facts["versions"] = ", ".join(f"{name} {number}" for name, number in start["versions"].items())
    table = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(str(value))}</tr>" for name, value in facts.items())
    held_out = "".join(
        f"<tr><td>{html.escape(name)}<td>{first:.4g}<td>{last:.4g}</tr>"
        for name, (first, last) in before_and_after(log).items()
    )
    if held_out:
        held_out = f"<h2>Held out</h2><table><tr><td><td>first<td>last</tr>{held_out}</table>"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    shown = yaml.safe_dump({name: value for name, value in recipe.items() if value not in (None, "", [], {})})
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(folder.name)}</title><style>{STYLE}</style>
<h1>{html.escape(folder.name)}</h1><table>{table}</table>
{held_out}
<div class="charts">{charts}</div>
<h2>Recipe</h2><pre>{html.escape(shown)}</pre></html>
"""
    path = folder / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def before_and_after(log: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Every held-out figure that was measured more than once: the first, which is from before the training under
    `eval_on_start`, and the last.
    """
    names = {name: None for entry in log for name in entry if name.startswith("eval_") and not name.endswith(COSTS)}
    found = {name: [entry[name] for entry in log if entry.get(name) is not None] for name in names}
    return {name.removeprefix("eval_"): (values[0], values[-1]) for name, values in found.items() if len(values) > 1}


def _last_figures(log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    latest = {name: value for entry in log for name, value in entry.items() if value is not None}
    rates = sorted(entry["tokens_per_second"] for entry in log if entry.get("tokens_per_second"))
    facts: dict[str, Any] = {"steps": latest.get("step")}
    for name in ("loss", "eval_loss", "eval_bits_per_byte", "mfu"):
        if name in latest:
            facts[f"last {name}"] = f"{latest[name]:.4f}"
    if rates:
        facts["median tokens/s"] = f"{rates[len(rates) // 2]:,.0f}"
    if "train_runtime" in latest:
        facts["time of the last start"] = clock_time(latest["train_runtime"])
    return facts
