"""The curves of a rollout as SVG: well formed, escaped, and empty where nothing can be drawn."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from orchestrator.tracking.plot import Line, Panel, draw

NAMESPACE = "{http://www.w3.org/2000/svg}"


def test_each_curve_is_a_line_of_its_panel() -> None:
    weight = Line("weight", ((0.0, 0.0), (5.0, 10.0), (9.0, 100.0)), steps=True)
    margin = Line("margin <1%>", ((0.0, 0.01), (9.0, 0.01)), dashed=True)
    picture = ElementTree.fromstring(draw("a & b", [Panel("weight", (weight,)), Panel("upper", (margin,))]))
    lines = picture.findall(f"{NAMESPACE}polyline")
    assert [line.get("stroke-dasharray") for line in lines] == [None, "5 3"]
    assert len((lines[0].get("points") or "").split()) == 6, "a step goes along, then up"
    texts = [text.text for text in picture.iter(f"{NAMESPACE}text")]
    assert {"a & b", "margin <1%>"} <= set(texts)


def test_what_cannot_be_drawn_is_left_out() -> None:
    assert draw("t", [Panel("p", (Line("l", ((0.0, math.nan), (1.0, math.inf))),)), Panel("q", ())]) == ""
    assert "<circle" in draw("t", [Panel("p", (Line("l", ((3.0, 1.0),)),))])


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    line = Line("l", tuple((float(t), float(t)) for t in range(10_001)))
    found = ElementTree.fromstring(draw("t", [Panel("p", (line,))])).find(f"{NAMESPACE}polyline")
    assert found is not None
    points = (found.get("points") or "").split()
    assert len(points) <= 601
    assert (points[0], points[-1]) == ("64.0,208.0", "610.0,58.0")
