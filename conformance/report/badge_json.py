"""The score as JSON of the endpoint schema of shields, from which they draw a badge."""

from __future__ import annotations

import json
from collections.abc import Sequence

from conformance.record import Record, Run
from conformance.report.badge import badge


def render(run: Run, records: Sequence[Record]) -> str:
    """Return one JSON object of schema version 1: label, message and colour."""
    drawn = badge(run, records)
    name, _ = drawn.colour.value
    return json.dumps({"schemaVersion": 1, "label": drawn.label, "message": drawn.message, "color": name}) + "\n"
