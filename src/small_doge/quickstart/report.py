"""Makes the run's report: report.json, one self-contained HTML page, and the same in Markdown."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from small_doge.quickstart.page import as_html
from small_doge.quickstart.road import STAGE_NAMES
from small_doge.quickstart.state import RoadState, write_json
from small_doge.trainer.callbacks import LOG_FILE
from small_doge.utils.hardware import default_device, device_name
from small_doge.utils.throughput import clock_time

LIBRARIES = ("small-doge", "torch", "transformers", "trl", "datasets", "tokenizers", "accelerate")


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
    rows = figures(report)
    recipes = {stage: recipe_text(path / "recipe.yaml") for stage, path in checkpoints.items()}
    (out / "report.html").write_text(as_html(report, rows, curves, recipes), encoding="utf-8")
    (out / "report.md").write_text(as_markdown(report, rows), encoding="utf-8")
    return report


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that made the run."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


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


def percent(value: float) -> str:
    return f"{value:.1%}"


def figures(report: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """The table of the report: stage, what was measured, before (or the yardstick), after, how."""
    pretrain, sft, dpo, distill, grpo = (report[stage] for stage in STAGE_NAMES)
    low, high = grpo["ci95"]["change"]
    return [
        (
            "pretrain",
            "bits per byte on held-out text",
            f"{pretrain['gzip_bits_per_byte']:.2f} (gzip -9)",
            f"{pretrain['bits_per_byte']:.2f}",
            f"{pretrain['ratio']:.2f} of gzip, {pretrain['held_out_bytes']:,} bytes",
        ),
        (
            "sft",
            "loss on held-out answers",
            f"{sft['answer_loss_before']:.2f}",
            f"{sft['answer_loss_after']:.2f}",
            f"nats a token, n = {sft['n']}",
        ),
        (
            "dpo",
            "preference accuracy on held-out pairs",
            percent(dpo["accuracy_before"]),
            percent(dpo["accuracy_after"]),
            f"the chosen answer is likelier a token, n = {dpo['n']}; {interval(dpo['accuracy_change_ci95'])}",
        ),
        (
            "dpo",
            "log-ratio margin between chosen and rejected",
            "0.00",
            f"{dpo['log_ratio_margin']:.2f}",
            f"nats a pair; up in {percent(dpo['reward_accuracy'])} of the pairs",
        ),
        (
            "dpo",
            "loss on held-out chosen answers",
            f"{dpo['answer_loss_before']:.2f}",
            f"{dpo['answer_loss_after']:.2f}",
            "nats a token",
        ),
        (
            "distill",
            "answers with well-formed thinking",
            "",
            percent(distill["format_rate"]),
            f"n = {distill['n']}, 95 % interval {interval(distill['format_rate_ci95'])}",
        ),
        (
            "grpo",
            "held-out arithmetic problems solved",
            percent(grpo["accuracy_before"]),
            percent(grpo["accuracy_after"]),
            f"greedy, n = {grpo['n']}; change {interval([low, high])} (95 %, paired)",
        ),
    ]


def interval(ends: list[float]) -> str:
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} points"


def as_markdown(report: dict[str, Any], rows: list[tuple[str, str, str, str, str]]) -> str:
    """The report's table, samples and times in Markdown."""
    seconds = report["seconds"]
    lines = [
        "# From text to a small model that answers",
        "",
        f"{report['pretrain']['parameters']:,} parameters, {clock_time(seconds['total'])} on {report['device']}.",
        "",
        "| stage | measured on held-out data | before | after | how |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "## What it says",
        "",
    ]
    for sample in report["samples"]:
        lines += [f"**{sample['question']}**", "", "```", sample["answer"], "```", ""]
    lines += [
        "## Time",
        "",
        "| stage | time |",
        "|---|---|",
        *(f"| {s} | {clock_time(v)} |" for s, v in seconds.items()),
        "",
    ]
    lines += [", ".join(f"{name} {number}" for name, number in report["versions"].items())]
    return "\n".join(lines) + "\n"
