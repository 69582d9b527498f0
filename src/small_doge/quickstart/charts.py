"""Draws a curve as SVG that takes its colors from the page, so that it reads in light and in dark."""

from __future__ import annotations

import io
from typing import Any

# Colors that stand for the page's own: the drawing is in these, and they are replaced in its text.
PAGE_COLORS = {"#010203": "var(--accent)", "#040506": "var(--soft)", "#070809": "var(--line)"}
ACCENT, SOFT, LINE = PAGE_COLORS
SMOOTHING = 0.6


def smoothed(values: list[float], weight: float = SMOOTHING) -> list[float]:
    """Exponential mean of what came so far, without a pull towards the start."""
    means, total, mass = [], 0.0, 0.0
    for value in values:
        total, mass = weight * total + value, weight * mass + 1.0
        means.append(total / mass)
    return means


def chart(title: str, points: list[dict[str, Any]], value: str, width: float = 4.4) -> str:
    """One curve over the training steps, `width` inches wide: every logged value faint, their running mean on top."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    steps, values = [p["step"] for p in points], [p[value] for p in points]
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure, axes = pyplot.subplots(figsize=(width, 2.5))
        axes.plot(steps, values, color=ACCENT, linewidth=1.0, alpha=0.35)
        axes.plot(steps, smoothed(values), color=ACCENT, linewidth=2.0, solid_capstyle="round")
        axes.set_title(title, fontsize=11, loc="left", color=SOFT, pad=10)
        axes.set_xlabel("step", fontsize=9, color=SOFT)
        axes.tick_params(labelsize=9, colors=SOFT, length=0)
        axes.locator_params(axis="both", nbins=5)
        axes.grid(axis="y", color=LINE, linewidth=1.0)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(LINE)
        figure.tight_layout()
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for color, name in PAGE_COLORS.items():
        drawing = drawing.replace(color, name)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{title} by step" ', 1)
