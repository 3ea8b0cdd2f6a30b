"""One record as text for a person: what a failing test prints."""

from __future__ import annotations

from dataclasses import replace

from conformance.record import Outcome, Record, Verdict


def headline(record: Record) -> str:
    """One short line: the verdict, and the first thing that is wrong."""
    if record.unexpected_pass:
        return f"passes, but {record.known}: remove the known failure"
    if record.lapsed is not None:
        return f"{headline(replace(record, lapsed=None))}; {record.lapsed}"
    failed = [f for f in record.findings if f.outcome is not Outcome.HELD]
    if failed:
        return f"{record.verdict}: {failed[0].check}: expected {failed[0].expected}; got {failed[0].got}"
    if record.verdict is Verdict.NATIVE:
        return f"{record.verdict}: {len(record.findings)} checks held"
    last = (record.error or "").strip().splitlines()
    return f"{record.verdict} in {record.stage}: {last[-1] if last else 'no message'}"


def explain(record: Record) -> str:
    """The headline, every finding, the operators side by side, and the error."""
    lines = [headline(record), "", f"case     {record.subject.case}", f"why      {record.subject.why}", ""]
    for finding in record.findings:
        lines.append(f"{finding.outcome:<8} {finding.check}: expected {finding.expected}")
        lines.append(f"{'':<8} {'':<{len(finding.check)}}  got      {finding.got}")
    names = sorted({*record.expected_ops, *record.executed_ops})
    if names and record.executed_ops:
        lines += ["", f"{'operator':<40} {'expected':>8} {'got':>5}"]
        for name in names:
            want = record.expected_ops.get(name)
            got = record.executed_ops.get(name, 0)
            mark = "  <--" if want is not None and want != got else ""
            lines.append(f"{name:<40} {'' if want is None else want:>8} {got:>5}{mark}")
    if record.error:
        lines += ["", record.error]
    return "\n".join(lines)
