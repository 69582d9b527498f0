"""Makes the run's report: report.json, one self-contained HTML page, and the same in Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from small_doge.quickstart.figures import Figure, figures_of
from small_doge.quickstart.page import TITLE, as_html, lead
from small_doge.quickstart.road import STAGE_NAMES
from small_doge.quickstart.state import RoadState, write_json
from small_doge.trainer.callbacks import LOG_FILE
from small_doge.utils.hardware import default_device, device_name
from small_doge.utils.provenance import versions
from small_doge.utils.throughput import clock_time


def make_report(
    out: Path, state: RoadState, answers: list[dict[str, str]], checkpoints: dict[str, Path]
) -> dict[str, Any]:
    """Write report.json, report.html and report.md into `out`, and return what report.json holds."""
    results, seconds = state.values["results"], state.values["seconds"]
    report: dict[str, Any] = {stage: results[stage] for stage in (*STAGE_NAMES, "tokenizer", "data")}
    report["seconds"] = seconds | {"total": round(sum(seconds.values()), 1)}
    report["restarts"] = {stage: begun - 1 for stage, begun in state.values["begun"].items() if begun > 1}
    report["checkpoints"] = {stage: str(path) for stage, path in checkpoints.items()}
    report["samples"] = answers
    report["settings"] = state.values["settings"]
    report["versions"] = versions()
    report["device"] = device_name(default_device())
    write_json(out / "report.json", report)
    curves = {stage: curve(path / LOG_FILE) for stage, path in checkpoints.items()}
    figures = figures_of(report)
    recipes = {stage: recipe_text(path / "recipe.yaml") for stage, path in checkpoints.items()}
    (out / "report.html").write_text(as_html(report, figures, curves, recipes), encoding="utf-8")
    (out / "report.md").write_text(as_markdown(report, figures, recipes), encoding="utf-8")
    return report


def curve(path: Path) -> list[dict[str, Any]]:
    """The logged lines of a stage that carry a loss."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [line for line in lines if line.get("loss") is not None]


def recipe_text(path: Path) -> str:
    """The recipe of a stage without the options that are unset."""
    if not path.exists():
        return ""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return yaml.safe_dump({key: value for key, value in values.items() if value not in (None, "", [], {})})


def as_markdown(report: dict[str, Any], figures: list[Figure], recipes: dict[str, str]) -> str:
    """The report's table, samples, times and configuration in Markdown."""
    lines = [f"# {TITLE}", "", lead(report), ""]
    lines += [
        "| stage | measured on held-out data | before | after | 95 % interval | how |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {f.stage} | {f.what} | {f.before} | {f.after} | {f.interval} | {f.how} |" for f in figures]
    lines += ["", "## What it says", ""]
    for sample in report["samples"]:
        lines += [f"**{sample['question']}**", "", *(f"    {line}" for line in sample["answer"].splitlines()), ""]
    lines += ["## Where the time went", "", "| stage | time |", "|---|---|"]
    lines += [f"| {stage} | {clock_time(value)} |" for stage, value in report["seconds"].items()]
    if report["restarts"]:
        lines += ["", f"Interrupted and resumed: {', '.join(report['restarts'])}. Seconds are of the last start."]
    lines += ["", "## Configuration", ""]
    for name, text in {**recipes, "settings": yaml.safe_dump(report["settings"])}.items():
        lines += [f"{name}:", "", "```yaml", text.rstrip(), "```", ""] if text else []
    lines += [", ".join(f"{name} {number}" for name, number in report["versions"].items())]
    return "\n".join(lines) + "\n"
