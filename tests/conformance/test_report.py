from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_pages import hostile_record, told
from rich.console import Console
from synthetic_records import BACKENDS, TWELVE, make_record, make_records, make_run, make_subject

from conformance.record import Debt, Finding, Outcome, Record, Verdict
from conformance.report import FORMATS, junit, markdown, summary, terminal

# Badges show the score alone.
DETAILED = [name for name in FORMATS if not name.startswith("badge")]
SHARE = re.compile(r"\d+ of \d+ \((?:< 1|\d+) %\)")


@pytest.fixture(scope="module")
def many() -> list[Record]:
    return make_records(60)


# ---- every format


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_a_module_with_one_sentence_and_render(name: str, many: list[Record]) -> None:
    module = import_module(FORMATS[name][0])
    assert re.fullmatch(r"[^\n]+\.", module.__doc__ or "")
    assert FORMATS[name][1].startswith(".")
    assert module.render(make_run(60), many)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_show_an_empty_run(name: str) -> None:
    assert import_module(FORMATS[name][0]).render(make_run(0, ()), [])


@pytest.mark.parametrize("name", ["terminal", "markdown", "html"])
def test_a_percentage_never_stands_without_n_of_m(name: str, many: list[Record]) -> None:
    text = import_module(FORMATS[name][0]).render(make_run(60), many)
    # Only what a reader sees: styles and scripts have percentages of their own.
    seen = re.sub(r"<style>.*?</style>|<script.*?</script>", "", text, flags=re.S)
    assert len(re.findall(r"\d %", seen)) == len(SHARE.findall(seen)) > 0


@pytest.mark.parametrize("name", ["terminal", "markdown", "html"])
def test_an_interrupted_run_says_so(name: str, many: list[Record]) -> None:
    render = import_module(FORMATS[name][0]).render
    assert "ncomplete" in render(make_run(61), many)
    assert "ncomplete:" not in render(make_run(60), many)


def test_reports_import_neither_torch_nor_a_backend() -> None:
    modules = ", ".join(module for module, _ in FORMATS.values())
    code = f"import sys, {modules}; print(sorted({{'torch', 'qlib', 'conformance.engine'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- summary


def test_error_is_never_part_of_a_score_and_known_failures_stay_in_it() -> None:
    subject = make_subject(0)
    verdicts = [Verdict.NATIVE, Verdict.NATIVE, Verdict.ERROR, Verdict.WRONG]
    records = [make_record(subject, verdict=verdict) for verdict in verdicts]
    records[3] = replace(records[3], known="a reason")
    whole = summary.total(records)
    assert (whole.score, whole.errors, whole.known) == ("2 of 3 (66 %)", 1, 1)
    assert [record.verdict for record in summary.failures(records)] == [Verdict.ERROR]
    assert summary.known_failures(records) == [summary.KnownFailures("a reason", (subject.case,))]


@pytest.mark.parametrize("name", DETAILED)
def test_a_pass_that_was_known_to_fail_is_writtenas_a_failure(name: str) -> None:
    record = replace(make_record(make_subject(0)), known="fixed since")
    assert summary.known_failures([record]) == []
    assert summary.total([record]).known == 0
    assert summary.failures([record]) == [record]
    text = told(name, make_run(1, ("qlib",)), [record])
    assert "fixed since" in text
    assert re.search(r"Failures: 1|1 unexpected failure|<failure", text)


@given(whole=st.integers(1, 10**6), part=st.integers(0, 10**6))
def test_share_says_100_only_of_all_and_0_only_of_none(whole: int, part: int) -> None:
    part = min(part, whole)
    text = summary.share(part, whole)
    assert SHARE.fullmatch(text)
    assert ("(100 %)" in text) == (part == whole)
    assert ("(0 %)" in text) == (part == 0)


@given(st.lists(st.sampled_from(Verdict), max_size=40))
def test_every_record_is_counted_once_in_groups_and_total(verdicts: list[Verdict]) -> None:
    records = [make_record(make_subject(i), verdict=verdict) for i, verdict in enumerate(verdicts)]
    groups = summary.tally(records, summary.family_of)
    whole = summary.total(records)
    not_scored = sum(verdict in (Verdict.ERROR, Verdict.UNSUPPORTED) for verdict in verdicts)
    assert sum(group.scored for group in groups) == whole.scored == len(records) - not_scored
    assert sum(group.native for group in groups) == whole.native
    assert [group.label for group in groups] == sorted({(record.subject.family,) for record in records})


def test_modes_and_captures_are_counted_each_for_itself_and_together() -> None:
    subject = make_subject(0)
    captured = [("static", "export"), ("static", "trace"), ("static", "trace"), ("dynamic", "export")]
    subjects = [replace(subject, mode=mode, capture=capture) for mode, capture in captured]
    records = [make_record(subjects[0], verdict=Verdict.WRONG), *map(make_record, subjects[1:])]
    grid = summary.by_mode_and_capture(records)
    assert grid.captures == ("export", "trace")
    counts = {mode: [group and (group.native, group.scored) for group in groups] for mode, groups in grid.rows}
    assert counts == {"dynamic": [(1, 1), None, (1, 1)], "static": [(0, 1), (2, 2), (2, 3)]}


@pytest.mark.parametrize("name", ["terminal", "markdown", "html"])
def test_counts_by_mode_and_capture_are_shown(name: str, many: list[Record]) -> None:
    text = told(name, make_run(60), many)
    own = [record for record in many if record.backend == BACKENDS[0]]
    for mode, groups in summary.by_mode_and_capture(own).rows:
        assert mode in text
        for group in filter(None, groups[:-1]):
            # The page's script makes words of the numbers.
            shown = f"[{group.native}, {group.scored}]" if name == "html" else f"{group.native} of {group.scored}"
            assert shown in text


def test_markdown_names_the_layers_where_errors_come_from(many: list[Record]) -> None:
    text = markdown.render(make_run(60), many)
    section = text[text.index("### Layers") : text.index("### Failures")]
    layered = [record for record in many if record.layers]
    worst = min(layered, key=lambda record: min(layer.sqnr_db for layer in record.layers))
    assert worst.subject.case.partition("[")[0] in section.splitlines()[4]
    assert "### Layers" not in markdown.render(make_run(60), [replace(record, layers=()) for record in many])


def test_the_tables_of_verdicts_name_every_verdict() -> None:
    scored = set(Verdict) - {Verdict.NATIVE}
    assert set(summary.ORDER) == set(summary.GLYPHS) == set(summary.URGENCY) == set(junit.ELEMENTS) == set(Verdict)
    assert set(terminal.HEADINGS) == scored
    assert len(set(summary.GLYPHS.values())) == len(Verdict)


def test_complaint_takes_the_first_finding_that_did_not_hold_then_the_last_line_of_the_error() -> None:
    wrong = make_record(make_subject(0), verdict=Verdict.WRONG)
    assert str(summary.complaint(wrong)) == "accuracy: expected SQNR of 30 dB or more, got SQNR of 11.25 dB"
    crash = replace(make_record(make_subject(0), verdict=Verdict.CRASH), stage="lower", error="first\nsignal 11\n\n")
    assert str(summary.complaint(crash)) == "lower: signal 11"
    silent = replace(crash, stage=None, error=None)
    assert str(summary.complaint(silent)) == "run: crash, nothing was reported"


@given(st.text(max_size=200), st.integers(1, 50))
def test_one_line_is_printable_and_short(text: str, limit: int) -> None:
    line = summary.one_line(text, limit)
    assert len(line) <= limit
    assert line.isprintable()


# ---- terminal


def test_terminal_fits_80_columns_with_every_verdict_and_long_names() -> None:
    verdicts = list(Verdict)
    records = [
        replace(make_record(make_subject(i, "family_of_long_name"), verdict=verdicts[i % 8]), known="why " * 40 or None)
        for i in range(1600)
    ]
    records += make_records(500, ("qlib",))
    text = terminal.render(make_run(2100, ("qlib",)), records)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    for verdict, heading in terminal.HEADINGS.items():
        assert all(part in text for part in heading.split("\n")), verdict


@pytest.mark.parametrize("width", [80, 100])
def test_terminal_has_a_line_for_each_of_many_backends(width: int) -> None:
    records = make_records(60, TWELVE)
    out = io.StringIO()
    terminal.print_to(Console(file=out, width=width), make_run(60, TWELVE), records)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    above = lines[: lines.index(next(line for line in lines if line.startswith("Failures: ")))]
    assert len(above) < 85
    for group in summary.tally(records, summary.backend_of):
        (line,) = [
            line for line in above if re.match(rf"{group.label[0][:6]}.* {group.native} of {group.scored} ", line)
        ][:1]
        assert str(group.counts.get(Verdict.WRONG, "·")) in line


def test_families_with_failures_are_writtenwith_the_backends_that_fail_there() -> None:
    subjects = [make_subject(n, family) for n, family in enumerate(["conv", "conv", "linear", "norm"])]
    verdicts = [Verdict.WRONG, Verdict.CRASH, Verdict.FALLBACK, Verdict.NATIVE]
    names = TWELVE[:6]
    records = [make_record(one, names[0], verdict) for one, verdict in zip(subjects, verdicts, strict=True)]
    records += [make_record(one, name) for one in subjects for name in names[1:]]
    text = terminal.render(make_run(4, names), records)
    assert re.search(rf"conv +{names[0]} 2\nlinear +{names[0]} 1\n", text)
    written = markdown.render(make_run(4, names), records)
    section = written[written.index("### Families with failures") : written.index("### By mode")]
    assert f"| `{names[0]}` | `conv` | 2 | 0 of 2 (0 %) |" in section
    assert "norm" not in section and names[1] not in section


def test_terminal_cuts_the_failures_and_says_how_many_are_left() -> None:
    records = [make_record(make_subject(i), verdict=Verdict.WRONG) for i in range(25)]
    text = terminal.render(make_run(25, ("qlib",)), records)
    assert text.count("✗ wrong") == 20
    assert "… and 5 more" in text


def test_terminal_shows_columns_only_for_verdicts_that_occur() -> None:
    text = terminal.render(make_run(2, ("qlib",)), [make_record(make_subject(i)) for i in range(2)])
    assert "wrong" not in text
    assert "2 of 2 (100 %) native" in text
    assert "No unexpected failures." in text


def test_terminal_prints_foreign_text_as_it_is() -> None:
    text = terminal.render(make_run(1, ("qlib",)), [hostile_record("[bold]x[/bold]\x1b[31m")])
    assert "[bold]x[/bold]" in text
    assert "\x1b" not in text


def test_terminal_uses_colours_where_the_console_has_them(many: list[Record]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=120)
    terminal.print_to(console, make_run(60), many)
    assert "\x1b[" in console.file.getvalue()  # type: ignore[attr-defined]


# ---- Markdown


def test_markdown_has_all_its_sections_and_well_formed_tables(many: list[Record]) -> None:
    text = markdown.render(make_run(60), many)
    for heading in (
        "## Conformance:",
        "### By backend",
        "### Families with failures",
        "### By mode and capture",
        "### Failures:",
        "### Known failures:",
    ):
        assert heading in text
    for above, below in pairwise(text.splitlines()):
        if above.startswith("|") and below.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", above)) == len(re.findall(r"(?<!\\)\|", below))


@pytest.mark.parametrize(
    "text",
    ["a|`b" * 400, "\U0001f600" * 900, "e\u0301" * 900, "````" * 300, "|" * 900],
    ids=["bars and backticks", "emoji", "accents", "backticks", "bars"],
)
def test_markdown_stays_below_the_limit_of_a_comment(text: str) -> None:
    backends = tuple(f"{i}{text}" for i in range(3))
    records = []
    for i in range(900):
        subject = replace(make_subject(i), case=f"{i}{text}", family=f"{i}{text}", mode=f"{i}{text}", capture=text)
        finding = Finding(text, Outcome.FAILED, text, text)
        record = replace(make_record(subject, backends[i % 3], list(Verdict)[i % 8]), findings=(finding,))
        records.append(replace(record, known=f"{i}{text}" if i % 2 else None))
    run = replace(make_run(300, backends), command=text)
    assert len(markdown.render(run, records).encode()) < 60_000


def test_markdown_keeps_foreign_text_in_code_spans() -> None:
    text = markdown.render(make_run(1, ("qlib",)), [hostile_record()])
    row = next(line for line in text.splitlines() if "onerror" in line)
    cells = re.split(r"(?<!\\)\|", row)[2:-1]
    assert all(re.fullmatch(r"(`+)(?!`).*(?<!`)\1", cell.strip()) for cell in cells)


# ---- JUnit


def test_junit_counts_agree_with_its_elements(many: list[Record]) -> None:
    root = ET.fromstring(junit.render(make_run(60), many).encode())
    assert root.tag == "testsuites"
    assert int(root.attrib["tests"]) == len(many) == len(root.findall("testsuite/testcase"))
    for suite in root.findall("testsuite"):
        for attribute, element in [("failures", "failure"), ("errors", "error"), ("skipped", "skipped")]:
            assert int(suite.attrib[attribute]) == len(suite.findall(f"testcase/{element}"))
    names = {(case.attrib["classname"], case.attrib["name"]) for case in root.iter("testcase")}
    assert len(names) == len(many)


@pytest.mark.parametrize(
    ("verdict", "known", "element"),
    [
        (Verdict.NATIVE, None, None),
        (Verdict.WRONG, None, "failure"),
        (Verdict.WRONG, "a reason", "skipped"),
        (Verdict.FALLBACK, None, "failure"),
        (Verdict.VACUOUS, None, "failure"),
        (Verdict.UNSUPPORTED, None, "skipped"),
        (Verdict.CRASH, None, "error"),
        (Verdict.TIMEOUT, None, "error"),
        (Verdict.ERROR, None, "error"),
    ],
)
def test_junit_element_of_each_verdict(verdict: Verdict, known: str | None, element: str | None) -> None:
    record = replace(make_record(make_subject(0), verdict=verdict), known=known)
    case = ET.fromstring(junit.render(make_run(1), [record]).encode()).find("testsuite/testcase")
    assert case is not None
    assert [child.tag for child in case] == ([] if element is None else [element])
    if known:
        assert known in case[0].attrib["message"]


@settings(deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_junit_is_well_formed_whatever_the_text(text: str) -> None:
    root = ET.fromstring(junit.render(make_run(1), [hostile_record(text)]).encode())
    assert len(root.findall("testsuite/testcase/failure")) == 1


# ---- known failures


@pytest.mark.parametrize("name", ["terminal", "markdown", "html"])
def test_the_debt_of_known_failures_is_told(name: str) -> None:
    records = [replace(make_record(make_subject(n), verdict=Verdict.WRONG), known="r") for n in range(3)]
    debt = (Debt("qlib", 2, 1, 1, "2025-03-01"), Debt("torchao", 0))
    shown = told(name, replace(make_run(3), debt=debt), records)
    assert "qlib: 2 entries cover 3 cases, the oldest of 2025-03-01, 1 expired, 1 for other versions" in shown
    assert "torchao: 0 entries" not in shown


@pytest.mark.parametrize("name", DETAILED)
def test_a_failure_whose_entry_has_expired_is_told(name: str) -> None:
    record = replace(make_record(make_subject(0), verdict=Verdict.WRONG), lapsed="known until 2025-01-01: a reason")
    assert "known until 2025-01-01: a reason" in told(name, make_run(1), [record])
