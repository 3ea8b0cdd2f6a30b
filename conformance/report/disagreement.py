"""Whether the backends that ran a case agree about it."""

from __future__ import annotations

from typing import Final

from conformance.identified import UNDECIDED, answers
from conformance.record import Verdict
from conformance.report.rows import Row

# A backend that was not asked, or declares that it can't, contradicts no other.
SILENT: Final = frozenset({Verdict.UNSUPPORTED, Verdict.ERROR})


def disagree(row: Row) -> bool:
    """Tell whether a row's cells differ in their verdicts, or show rules of rounding that can't be the same."""
    leading = (cell.leading for cell in row.cells.values())
    spoken = [record for record in leading if record.verdict not in SILENT]
    if len({record.verdict for record in spoken}) > 1:
        return True
    told = (record.properties.get("rounding", UNDECIDED) for record in spoken)
    rules = [frozenset(answers(shown)) for shown in told if shown != UNDECIDED]
    return bool(rules) and not frozenset.intersection(*rules)
