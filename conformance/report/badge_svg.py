"""The score as a small SVG picture that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree as ET

from conformance.record import Record, Run
from conformance.report.badge import badge

# Pixels for a character at 11 px; `textLength` then fits whatever font there is into what was reckoned.
WIDE: Final = 6.6
PADDING: Final = 6
HEIGHT: Final = 20
GROUND: Final = "#3d444d"


def render(run: Run, records: Sequence[Record]) -> str:
    """Return an SVG document whose title says in text what it shows."""
    drawn = badge(run, records)
    widths = [round(WIDE * len(text)) for text in (drawn.label, drawn.message)]
    middle, right = widths[0] + 2 * PADDING, sum(widths) + 4 * PADDING
    whole = f"{drawn.label}: {drawn.message}"
    size = {"width": str(right), "height": str(HEIGHT), "viewBox": f"0 0 {right} {HEIGHT}"}
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, "role": "img", "aria-label": whole})
    ET.SubElement(root, "title").text = whole
    _, colour = drawn.colour.value
    for start, width, fill in ((0, middle, GROUND), (middle, right - middle, colour)):
        place = {"x": str(start), "width": str(width), "height": str(HEIGHT), "fill": fill}
        ET.SubElement(root, "rect", place)
    font = {"fill": "#ffffff", "font-family": "Verdana, DejaVu Sans, sans-serif", "font-size": "11"}
    texts = ET.SubElement(root, "g", font)
    for start, width, text in ((PADDING, widths[0], drawn.label), (middle + PADDING, widths[1], drawn.message)):
        ET.SubElement(texts, "text", {"x": str(start), "y": "14", "textLength": str(width)}).text = text
    return ET.tostring(root, encoding="unicode") + "\n"
