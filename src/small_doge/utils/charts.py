"""Curves as SVG text, drawn by hand: a page needs no other file, and a run no plotting library."""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 220, 62, 12, 30, 28


def curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A curve through (x, y) points, in the order given, as an SVG element.

    Its axes name the lowest and the highest of x and y. A single point is drawn as a dot.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)

    def place(x: float, y: float) -> str:
        across = (x - x_low) / (x_high - x_low or 1.0)
        up = (y - y_low) / (y_high - y_low or 1.0)
        return f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"

    def text(x: int, y: int, words: str, anchor: str = "start", size: int = 11) -> str:
        return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{html.escape(words)}</text>'

    path = " ".join(place(x, y) for x, y in points)
    if len(points) == 1:
        path = f"{path} {path}"  # A line of no length is a dot, with round ends.
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" '
        f'aria-label="{html.escape(title, quote=True)}">'
        f'<path d="M{LEFT},{TOP}V{floor}H{right}" fill="none" stroke="#999"/>'
        f'<polyline points="{path}" fill="none" stroke="#b45309" stroke-width="1.8" stroke-linecap="round"/>'
        + text(LEFT, 18, title, size=13)
        + text(LEFT - 6, TOP + 8, f"{y_high:.4g}", "end")
        + text(LEFT - 6, floor, f"{y_low:.4g}", "end")
        + text(LEFT, HEIGHT - 10, f"{x_low:,.0f}")
        + text(right, HEIGHT - 10, f"{x_high:,.0f} steps", "end")
        + "</svg>"
    )
