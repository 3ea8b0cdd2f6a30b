"""The front page of a folder of published results: what ran, how it ended, and what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from conformance.record import Record, Run, Verdict
from conformance.report import summary
from conformance.report.markdown import table

# Verdicts with a column of their own; `native` is the score, and nothing published should be an `error` or `vacuous`.
SHOWN: Final = (Verdict.FALLBACK, Verdict.WRONG, Verdict.CRASH, Verdict.TIMEOUT, Verdict.UNSUPPORTED)
UNDECIDED: Final = "undecided"


def render(run: Run, records: Sequence[Record], links: Mapping[str, str], findings: str = "") -> str:
    """Return the page in Markdown; `links` are the other files by what they are, `findings` a text of headings."""
    missing = summary.missing(run, records)
    sections = [
        "# Published results",
        "Bundled specs on the backends below, as `tox -e publish` makes it anew with every backend that can be "
        "installed: " + ", ".join(f"[{title}]({file})" for title, file in links.items()) + ".",
        f"**Incomplete:** {missing} of {run.planned} planned records are missing." if missing else "",
        table(["", ""], [[label, value] for label, value in summary.facts(run)], 0),
        "## Backends",
        "`native` counts the cases that are right by the expected integer operators, of those that could be put to the "
        "backend; `unsupported` are declared lacks, and cases of modes and captures that it does not have. `wrong` is "
        "a check that failed: a bound that the bundled library meets, or a tie that a backend without an explanation "
        "can't be excused by, is among them. Which are defects is said in the findings.",
        table(
            ["backend", "native", *(str(verdict) for verdict in SHOWN), "other", "rounding", "dynamic activations"],
            [_backend(name, records) for name in run.backends],
            0,
        ),
        "Rounding and the scheme of dynamic activations are told from the numbers; with how many cases told so.",
        "## Versions",
        table(["backend", "versions"], [[name, _versions(run, name)] for name in run.backends], 0),
        "## Findings" if findings else "",
        _findings(findings),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _backend(name: str, records: Sequence[Record]) -> list[str]:
    own = [record for record in records if record.backend == name]
    whole = summary.total(own)
    counts = [whole.counts.get(verdict, 0) for verdict in SHOWN]
    other = len(own) - whole.native - sum(counts)
    score = whole.score
    return [name, score, *map(str, counts), str(other), _shown(own, "rounding"), _shown(own, "activation_scheme")]


def _shown(records: Sequence[Record], name: str) -> str:
    """What the cases tell of a property, most often told first; those that fit several say less and come last."""
    told = Counter(found for record in records if (found := record.properties.get(name)) not in (None, UNDECIDED))
    ordered = sorted(told.items(), key=lambda item: (" or " in str(item[0]), -item[1]))
    return ", ".join(f"{value} ({count})" for value, count in ordered[:4])


def _versions(run: Run, name: str) -> str:
    said = run.declared.get(name)
    if said is None:
        return ""
    if said.missing:
        return f"not installed: {', '.join(said.missing)}"
    return ", ".join(f"{package} {version}" for package, version in sorted(said.versions.items()))


def _findings(text: str) -> str:
    """The headings of a text of findings, as a list."""
    lines = []
    for line in text.splitlines():
        if line.startswith("## "):
            lines.append(f"  * {line.removeprefix('## ')}")
        elif line.startswith("# ") and not line.startswith("# Findings"):
            lines.append(f"* {line.removeprefix('# ')}")
    return "\n".join(lines)
