"""Whether the backends that ran a case agree about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from conformance.identified import UNDECIDED
from conformance.record import Record, Verdict

# A backend that was not asked, or declares that it can't, contradicts no other.
SILENT: Final = frozenset({Verdict.UNSUPPORTED, Verdict.ERROR})


def disagree(records: Sequence[Record]) -> bool:
    """Tell whether one case's records differ in their verdicts, or show rules of rounding that can't be the same."""
    spoken = [record for record in records if record.verdict not in SILENT]
    if len({record.verdict for record in spoken}) > 1:
        return True
    rules = [_rules(record) for record in spoken if record.properties.get("rounding", UNDECIDED) != UNDECIDED]
    return bool(rules) and not frozenset.intersection(*rules)


def _rules(record: Record) -> frozenset[str]:
    """The rules that fit, which a record joins by "or"."""
    return frozenset(record.properties["rounding"].split(" or "))
