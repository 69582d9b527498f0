"""Curves as SVG text, for pages that need no other file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any


def chart(title: str, points: Sequence[dict[str, Any]], value: str = "loss") -> str:
    """A curve of `value` over `step` as an SVG element."""
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
