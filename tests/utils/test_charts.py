"""A curve is well-formed SVG whose ends are where its numbers say."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from small_doge.utils.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curve

SVG = "{http://www.w3.org/2000/svg}"


def test_a_curve_runs_from_corner_to_corner_and_names_its_ends() -> None:
    drawing = ElementTree.fromstring(curve("loss & more", [(0, 2.0), (50, 1.5), (100, 1.0)]))
    points = drawing.find(f"{SVG}polyline").get("points").split()
    assert points[0] == f"{LEFT:.1f},{TOP:.1f}"
    assert points[-1] == f"{WIDTH - RIGHT:.1f},{HEIGHT - BOTTOM:.1f}"
    assert [text.text for text in drawing.iter(f"{SVG}text")] == ["loss & more", "2", "1", "0", "100 steps"]


def test_a_single_point_and_a_level_curve_are_drawn_too() -> None:
    for points in ([(3, 1.0)], [(1, 0.5), (2, 0.5)]):
        drawing = ElementTree.fromstring(curve("level", points))
        assert len(drawing.find(f"{SVG}polyline").get("points").split()) == 2
