"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import html
import io
from importlib.resources import files
from typing import Any

import yaml

from small_doge.utils.throughput import clock_time


def as_html(
    report: dict[str, Any],
    rows: list[tuple[str, str, str, str, str]],
    curves: dict[str, list[dict[str, Any]]],
    recipes: dict[str, str],
) -> str:
    """The report as one HTML page that needs no other file."""
    escape = html.escape
    style = (files("small_doge.quickstart") / "report.css").read_text(encoding="utf-8")
    table = "".join(
        f"<tr><td>{escape(stage)}</td><td>{escape(what)}</td><td class=number>{escape(before)}</td>"
        f"<td class='number after'>{escape(after)}</td><td class=how>{escape(how)}</td></tr>"
        for stage, what, before, after, how in rows
    )
    charts = "".join(
        f"<div>{chart(f'{stage}: loss', points)}</div>"
        for stage, points in curves.items()
        if points and stage != "grpo"
    )
    rewards = [p for p in curves.get("grpo", []) if "reward" in p]
    charts += f"<div>{chart('grpo: mean reward', rewards, 'reward')}</div>" if rewards else ""
    answers = "".join(
        f"<div class=answer><b>{escape(sample['question'])}</b><pre>{escape(sample['answer'])}</pre></div>"
        for sample in report["samples"]
    )
    seconds = report["seconds"]
    times = "".join(
        f"<tr><td>{escape(stage)}</td><td class=number>{clock_time(value)}</td>"
        f"<td class=number>{speed(curves.get(stage, []))}</td></tr>"
        for stage, value in seconds.items()
    )
    configuration = "".join(
        f"<details><summary>{escape(stage)}</summary><pre>{escape(text)}</pre></details>"
        for stage, text in recipes.items()
        if text
    )
    libraries = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    restarts = report["restarts"]
    note = (
        f"<p class=lead>Interrupted and resumed: {escape(', '.join(restarts))}; seconds are of the last start.</p>"
        if restarts
        else ""
    )
    parameters = report["pretrain"]["parameters"]
    lead = f"{parameters:,} parameters, {clock_time(seconds['total'])} on {escape(report['device'])}."
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>SmallDoge quickstart</title><style>{style}</style>
<main>
<h1>From text to a small model that answers</h1>
<p class="lead">{lead}</p>
<h2>What each stage did</h2>
<div class="wide"><table><tr><th>stage<th>measured on held-out data<th>before<th>after<th>how</tr>{table}</table></div>
<h2>Curves</h2><div class="charts">{charts}</div>
<h2>What it says</h2>{answers}
<h2>Time</h2>
<div class="wide"><table><tr><th>stage<th>time<th>training tokens/s (median)</tr>{times}</table></div>{note}
<h2>Configuration</h2>{configuration}
<details><summary>settings</summary><pre>{escape(yaml.safe_dump(report["settings"]))}</pre></details>
<p class="lead">{escape(libraries)}</p>
</main></html>
"""


def chart(title: str, points: list[dict[str, Any]], value: str = "loss") -> str:
    """A curve as SVG text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.fonttype"] = "none"
    figure, axes = pyplot.subplots(figsize=(4.2, 2.4))
    axes.plot([p["step"] for p in points], [p[value] for p in points], color="#b45309", linewidth=1.6)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True)
    pyplot.close(figure)
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]


def speed(points: list[dict[str, Any]]) -> str:
    """Median of the logged tokens/s."""
    rates = sorted(p["tokens_per_second"] for p in points if p.get("tokens_per_second"))
    return f"{rates[len(rates) // 2]:,.0f}" if rates else ""
