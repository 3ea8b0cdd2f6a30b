"""Report formats: each is one module with a one-sentence docstring and `render(run, records) -> str`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# name: (module, suffix of the file that it is written to); modules are imported only when a format is asked for.
FORMATS: Final[Mapping[str, tuple[str, str]]] = {
    "terminal": ("conformance.report.terminal", ".txt"),
    "markdown": ("conformance.report.markdown", ".md"),
    "html": ("conformance.report.html", ".html"),
    "junit": ("conformance.report.junit", ".xml"),
    "badge-svg": ("conformance.report.badge_svg", ".svg"),
    "badge-json": ("conformance.report.badge_json", ".json"),
}
