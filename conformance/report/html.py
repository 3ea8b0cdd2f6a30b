"""One self-contained HTML page with filters, a matrix of cases and backends, and a panel for each of both."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from conformance.diff import Change
from conformance.record import Record, Run
from conformance.report import summary
from conformance.report.payload import details, embed, index, pack

# In the order in which they are read.
SCRIPTS: Final = ("elements.js", "data.js", "layers.js", "panel.js", "backend.js", "matrix.js", "app.js")


def render(run: Run, records: Sequence[Record], changes: Sequence[Change] = ()) -> str:
    """Return a page that needs no network and no other file; fragments such as `#verdict=wrong` link to a view.

    `changes` are those from an earlier run, as `conformance.diff.compare` finds them; the page marks them.
    """
    here = files("conformance.report")
    script = "".join(here.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template.filters["share"] = _segments
    page = template.from_string(here.joinpath("template.html.j2").read_text(encoding="utf-8"))
    by_place = {(change.backend, change.case): change for change in changes}
    return page.render(
        whole=summary.total(records),
        failed=len(summary.failures(records)),
        missing=summary.missing(run, records),
        facts=summary.facts(run),
        debts=summary.debts(run, records),
        backends=[_backend(name, records) for name in run.backends],
        order=summary.ORDER,
        glyphs=summary.GLYPHS,
        style=Markup(here.joinpath("style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        index=Markup(embed(index(run, records, by_place))),
        details=Markup(pack(details(run, records, by_place))),
    )


def _backend(name: str, records: Sequence[Record]) -> dict[str, Any]:
    own = [record for record in records if record.backend == name]
    return {"name": name, "whole": summary.total(own), "families": summary.tally(own, summary.family_of)}


def _segments(group: summary.Tally) -> list[tuple[str, int, str]]:
    """The parts of a bar as verdict, count and glyph; `error` has no part, because it says nothing."""
    seen = [verdict for verdict in summary.verdicts_seen([group]) if verdict != "error"]
    return [(str(verdict), group.counts[verdict], summary.GLYPHS[verdict]) for verdict in seen]
