"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import html
from importlib.resources import files
from typing import Any

import yaml

from small_doge.quickstart.charts import chart
from small_doge.quickstart.figures import Figure
from small_doge.utils.throughput import clock_time

TITLE = "From text to a small model that answers"


def as_html(
    report: dict[str, Any],
    figures: list[Figure],
    curves: dict[str, list[dict[str, Any]]],
    recipes: dict[str, str],
) -> str:
    """The report as one HTML page that needs no other file."""
    style = (files("small_doge.quickstart") / "report.css").read_text(encoding="utf-8")
    restarts = ", ".join(report["restarts"])
    note = (
        f"<p>Interrupted and resumed: {html.escape(restarts)}. Seconds are of the last start.</p>" if restarts else ""
    )
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SmallDoge: {TITLE.lower()}</title>
<style>
{style}</style>
</head>
<body><main>
<header><h1>{TITLE}</h1>
<p>{html.escape(lead(report))}</p></header>
<section class="cards">{"".join(card(figure) for figure in figures if figure.headline)}</section>
<h2>What each stage did</h2>
<div class="wide">{figure_table(figures)}</div>
<h2>Curves</h2>
<section class="charts">{charts(curves)}</section>
<h2>What it says</h2>
{"".join(answer(sample) for sample in report["samples"])}
<h2>Where the time went</h2>
<div class="wide">{time_table(report["seconds"], curves)}</div>
{note}
<h2>Configuration</h2>
{"".join(folded(stage, text) for stage, text in recipes.items() if text)}
{folded("settings", yaml.safe_dump(report["settings"]))}
<footer>{html.escape(versions)}</footer>
</main></body>
</html>
"""


def lead(report: dict[str, Any]) -> str:
    """One line about the whole run."""
    parameters, total = report["pretrain"]["parameters"], report["seconds"]["total"]
    return f"{parameters:,} parameters, trained in {clock_time(total)} on {report['device']}."


def card(figure: Figure) -> str:
    """A stage's main figure, large."""
    before = f"<span>{html.escape(figure.before)} &rarr;</span> " if figure.before else ""
    return (
        f"<div class=card><small>{html.escape(figure.stage)}</small>"
        f"<strong>{before}{html.escape(figure.after)}</strong><em>{html.escape(figure.headline)}</em></div>"
    )


def figure_table(figures: list[Figure]) -> str:
    """Every figure with its interval and how it was measured."""
    rows = "".join(
        f"<tr><td>{html.escape(f.stage)}<td>{html.escape(f.what)}<td class=number>{html.escape(f.before)}"
        f"<td class='number after'>{html.escape(f.after)}<td class=number>{html.escape(f.interval)}"
        f"<td class=how>{html.escape(f.how)}</tr>"
        for f in figures
    )
    heads = ("stage", "measured on held-out data", "before", "after", "95 % interval", "how")
    return f"<table><tr>{''.join(f'<th>{head}' for head in heads)}</tr>{rows}</table>"


def charts(curves: dict[str, list[dict[str, Any]]]) -> str:
    """The loss of each stage, and the mean reward of reinforcement, whose loss says little."""
    drawings: list[str] = []
    for stage, points in curves.items():
        value = "reward" if stage == "grpo" else "loss"
        points = [point for point in points if value in point]
        if points:
            # The first takes two columns, so that five curves fill two rows of three.
            width = 4.4 if drawings else 9.1
            drawings.append(f"<figure>{chart(f'{stage}: {value}', points, value, width)}</figure>")
    return "".join(drawings)


def answer(sample: dict[str, str]) -> str:
    """A question and what the model answers."""
    said = html.escape(sample["answer"])
    return f"<div class=answer><b>{html.escape(sample['question'])}</b><pre>{said}</pre></div>"


def time_table(seconds: dict[str, float], curves: dict[str, list[dict[str, Any]]]) -> str:
    """Each stage's time with a bar for its share, and its training rate."""
    longest = max(value for stage, value in seconds.items() if stage != "total")
    rows = "".join(
        f"<tr><td>{html.escape(stage)}<td class=number>{clock_time(value)}"
        f"<td class=share>{bar(value / longest) if stage != 'total' else ''}"
        f"<td class=number>{speed(curves.get(stage, []))}</tr>"
        for stage, value in seconds.items()
    )
    return f"<table><tr><th>stage<th>time<th class=share><th>training tokens/s (median)</tr>{rows}</table>"


def bar(share: float) -> str:
    """A bar as long as its share."""
    return f"<i style='width: {share:.1%}'></i>"


def folded(title: str, text: str) -> str:
    """Text behind its title."""
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"


def speed(points: list[dict[str, Any]]) -> str:
    """Median of the logged tokens/s."""
    rates = sorted(p["tokens_per_second"] for p in points if p.get("tokens_per_second"))
    return f"{rates[len(rates) // 2]:,.0f}" if rates else ""
