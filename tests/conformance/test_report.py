from __future__ import annotations

import html as entities
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlencode
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from synthetic_records import BACKENDS, make_record, make_records, make_run, make_subject

from conformance.record import Debt, Finding, Measures, Outcome, Record, Subject, Verdict
from conformance.report import FORMATS, html, junit, markdown, summary, terminal

HOSTILE = "</script><img src=x onerror=alert(1)> \"'`|` @everyone \x1b[31m\x00 & ]]> <!-- ${{7*7}}"
SHARE = re.compile(r"\d+ of \d+ \((?:< 1|\d+) %\)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPORT = Path(html.__file__).parent


@pytest.fixture(scope="module")
def many() -> list[Record]:
    return make_records(60)


def hostile_record(text: str = HOSTILE) -> Record:
    subject = replace(make_subject(0), case=text, why=text, yaml=text, parameters={text: text}, path=text)
    finding = Finding(text, Outcome.FAILED, text, text)
    return replace(
        make_record(subject, verdict=Verdict.WRONG), findings=(finding,), error=text, executed_ops={text: 1}, stage=text
    )


def payload_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    payload: dict[str, object] = json.loads(found[1])
    return payload


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


@pytest.mark.parametrize("name", FORMATS)
def test_a_pass_that_was_known_to_fail_is_told_as_a_failure(name: str) -> None:
    record = replace(make_record(make_subject(0)), known="fixed since")
    assert summary.known_failures([record]) == []
    assert summary.total([record]).known == 0
    assert summary.failures([record]) == [record]
    text = import_module(FORMATS[name][0]).render(make_run(1, ("qlib",)), [record])
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
    assert sum(group.scored + group.errors for group in groups) == whole.scored + whole.errors == len(records)
    assert sum(group.native for group in groups) == whole.native
    assert [group.label for group in groups] == sorted({(record.subject.family,) for record in records})


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
        "### By family",
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


# ---- HTML


def test_html_is_small_enough_for_2000_cases_on_4_backends() -> None:
    page = html.render(make_run(2000), make_records(2000))
    assert len(page.encode()) < 5_000_000


def test_html_loads_nothing() -> None:
    page = html.render(make_run(1), [make_record(make_subject(0))])
    # The only fragments of an address are `#...` links; a policy forbids the rest to any browser.
    assert {value[0] for value in re.findall(r'(?:href|src|action|srcset)="([^"]*)"', page)} == {"#"}
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|innerHTML|\beval\(", page)
    assert "default-src 'none'" in page


@settings(deadline=None, max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80).map(lambda text: HOSTILE + text))
def test_html_lets_no_foreign_text_out_of_its_place(text: str) -> None:
    record = hostile_record(text)
    record = replace(record, subject=replace(record.subject, family=text), backend=text)
    page = html.render(make_run(1, (text,)), [record])
    assert "<img" not in page
    assert page.count("</script") == page.count("<script") == 2
    cases = payload_of(page)["cases"]
    assert isinstance(cases, dict)
    assert entities.unescape(page).count("<img") > 0


def rebuilt(page: str) -> list[dict[str, object]]:
    """The records as `to_json` gives them, read back from the page as its script does."""
    raw = payload_of(page)
    values, cases, records = raw["values"], raw["cases"], raw["records"]
    assert isinstance(values, list) and isinstance(cases, dict) and isinstance(records, dict)
    found = []
    for row in records["rows"]:
        data = dict(zip(records["fields"], row, strict=True))
        subject = [values[place] for place in cases["rows"][data["subject"]]]
        findings = [values[place] for place in data["findings"]]
        steps, *seconds = data["seconds"]
        special = {
            "subject": dict(zip(cases["fields"], subject, strict=True)),
            "findings": [dict(zip(("check", "outcome", "expected", "got"), row, strict=True)) for row in findings],
            "measures": dict(zip(raw["measures"], data["measures"], strict=True)),  # type: ignore[call-overload]
            "seconds": dict(zip(values[steps], seconds, strict=True)),
        }
        plain = {name: values[place] for name, place in data.items() if name not in special}
        found.append(plain | special)
    return found


def test_html_holds_every_record_whole(many: list[Record]) -> None:
    for record, data in zip(many, rebuilt(html.render(make_run(60), many)), strict=True):
        back = Record.from_json(data)
        assert back.seconds == pytest.approx(record.seconds, rel=1e-4)
        for name in ("sqnr_db", "max_abs", "max_quanta", "debug_quanta", "exact", "tie", "wrong"):
            expected = getattr(record.measures, name)
            assert getattr(back.measures, name) == (expected and pytest.approx(expected, rel=1e-4))
        assert replace(back, seconds={}, measures=Measures()) == replace(record, seconds={}, measures=Measures())


def test_html_shows_an_infinite_sqnr_and_cuts_an_endless_error() -> None:
    record = make_record(make_subject(0), verdict=Verdict.CRASH)
    record = replace(record, measures=Measures(sqnr_db=float("inf")), error="begin" + "x" * 10**6 + "end")
    data = rebuilt(html.render(make_run(1), [record]))[0]
    assert data["measures"]["sqnr_db"] == "inf"  # type: ignore[index]
    error = str(data["error"])
    assert len(error) < 5000 and error.startswith("begin") and error.endswith("end")


def test_html_tells_the_families_without_javascript(many: list[Record]) -> None:
    page = html.render(make_run(60), many)
    table = re.search(r"<noscript>(.*?)</noscript>", page, re.S)
    assert table is not None
    for group in summary.tally(many, lambda record: (record.backend, record.subject.family)):
        backend, family = group.label
        assert f'<td>{backend}</td><th scope="row">{family}</th><td>{group.score}</td>' in table[1]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_html_colours_are_readable(scheme: int) -> None:
    """Contrast of at least 4.5, by the formula of WCAG 2.2, section 1.4.3."""
    block = re.findall(r":root \{(.*?)\}", (REPORT / "style.css").read_text(encoding="utf-8"), re.S)[scheme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    inks = {"text", "quiet", "link", *map(str, Verdict)}
    pairs = [(ink, ground) for ink in inks for ground in ("ground", "raised")] + [("text", "mark")]
    for ink, ground in pairs:
        dark, light = sorted((luminance(colours[ink]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


# ---- HTML in a browser

Dom = Callable[[str, str, str], str]


@pytest.fixture
def dom(tmp_path: Path) -> Dom:
    """The page after its script ran at `fragment`, then after `steps` (JavaScript, run as an async function)."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")

    def load(page: str, fragment: str, steps: str = "") -> str:
        if steps:
            page = re.sub(r"<meta http-equiv[^>]*>", "", page)
            page = page.replace("</body>", f"<script>(async () => {{ {steps} }})()</script></body>")
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += f" --disable-component-update --disable-sync --virtual-time-budget=4000 --user-data-dir={tmp_path}/u"
        address = f"{(tmp_path / 'page.html').as_uri()}#{fragment}"
        command = [str(CHROMIUM), *flags.split(), "--dump-dom", address]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return load


def shown(page: str) -> str:
    found = re.search(r'id="shown"[^>]*>([^<]*)<', page)
    assert found is not None
    return entities.unescape(found[1])


def test_fragment_filters_the_matrix(dom: Dom, many: list[Record]) -> None:
    cases = {r.subject.case for r in many if r.verdict is Verdict.WRONG and r.subject.mode == "static"}
    page = dom(html.render(make_run(60), many), "verdict=wrong&mode=static", "")
    assert shown(page) == f"showing {len(cases)} of 60 cases"
    visible = re.findall(r'<tr role="row" class="case">.*?</a>', page)
    assert len(visible) == len(cases)
    assert '<dialog id="panel" aria-labelledby="panel-title"></dialog>' in page


def test_fragment_opens_the_panel_with_foreign_text_as_text(dom: Dom) -> None:
    record = hostile_record()
    page = dom(html.render(make_run(1, ("qlib",)), [record]), urlencode({"case": HOSTILE, "backend": "qlib"}), "")
    panel = page[page.index('<dialog id="panel"') : page.index("</dialog>")]
    assert '<dialog id="panel" aria-labelledby="panel-title" open' in panel
    assert "<img" not in page
    quoted = HOSTILE.replace("'", "'\\''").replace("\x00", "\ufffd")
    assert f"conformance show '{quoted}' --backend qlib" in entities.unescape(panel).replace("\x00", "\ufffd")


def test_panel_shows_what_is_asked_of_it(dom: Dom, many: list[Record]) -> None:
    record = next(r for r in many if r.verdict is Verdict.FALLBACK)
    fragment = urlencode({"case": record.subject.case, "backend": record.backend})
    page = dom(html.render(make_run(60), many), fragment, "")
    panel = entities.unescape(page[page.index('<dialog id="panel"') : page.index("</dialog>")])
    wanted = [record.subject.why, record.subject.yaml, "≠ differs", "SQNR against float", "within a tie", "calibrate"]
    item = record.subject.case.removeprefix(f"{record.subject.family}::").replace("[", f"[{record.backend}-")
    wanted += [
        f"pytest '{record.subject.path}::{item}' --backend {record.backend}",
        *record.executed_ops,
        *record.native_ops,
    ]
    assert [text for text in wanted if text not in panel] == []
    assert all(backend in panel for backend in BACKENDS)


def test_an_unknown_case_is_told(dom: Dom, many: list[Record]) -> None:
    page = dom(html.render(make_run(60), many), "case=nothing/like/it", "")
    assert "no case is called nothing/like/it" in shown(page)


KEYS = """
  const rows = document.querySelectorAll("tr.case a");
  const typed = (key) => new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true});
  const press = (key) => document.activeElement.dispatchEvent(typed(key));
  const pause = () => new Promise((done) => setTimeout(done, 200));
  const log = [];
  document.getElementById("skip").click();
  log.push(document.activeElement.className);
  press("j"); press("ArrowDown"); press("k");
  const link = document.activeElement;
  log.push(link.textContent === rows[0].textContent);
  link.click();
  const panel = document.getElementById("panel");
  log.push(panel.open, new URLSearchParams(location.hash.slice(1)).get("case") === link.textContent);
  press("j");
  log.push(document.getElementById("panel-title").textContent === rows[1].textContent);
  const closed = new Promise((done) => panel.addEventListener("close", done));
  panel.close(); await closed;
  log.push(location.hash.includes("case="), document.activeElement === rows[1]);
  press("ArrowLeft");
  log.push(document.activeElement.getAttribute("aria-expanded"));
  press("/");
  log.push(document.activeElement.name);
  document.activeElement.value = "linear";
  document.activeElement.dispatchEvent(new Event("input", {bubbles: true})); await pause();
  log.push(location.hash, document.querySelectorAll('.nav[tabindex="0"]').length);
  document.title = JSON.stringify(log);
"""


def test_keyboard_moves_opens_steps_closes_and_returns(dom: Dom, many: list[Record]) -> None:
    title = re.search(r"<title>(.*?)</title>", dom(html.render(make_run(60), many), "", KEYS))
    assert title is not None
    log = json.loads(entities.unescape(title[1]))
    assert log == ["nav fold", True, True, True, True, False, True, "false", "q", "#q=linear", 1]


def test_subjects_of_the_page_are_the_fields_of_subject() -> None:
    fields = html.payload(make_run(1), [make_record(make_subject(0))])["cases"]["fields"]
    assert fields == list(Subject.__dataclass_fields__)


# ---- known failures


@pytest.mark.parametrize("name", ["terminal", "markdown", "html"])
def test_the_debt_of_known_failures_is_told(name: str) -> None:
    records = [replace(make_record(make_subject(n), verdict=Verdict.WRONG), known="r") for n in range(3)]
    debt = (Debt("qlib", 2, 1, 1, "2025-03-01"), Debt("torchao", 0))
    shown = import_module(FORMATS[name][0]).render(replace(make_run(3), debt=debt), records)
    assert "qlib: 2 entries cover 3 cases, the oldest of 2025-03-01, 1 expired, 1 for other versions" in " ".join(
        shown.split()
    )
    assert "torchao: 0 entries" not in shown


@pytest.mark.parametrize("name", FORMATS)
def test_a_failure_whose_entry_has_expired_is_told(name: str) -> None:
    record = replace(make_record(make_subject(0), verdict=Verdict.WRONG), lapsed="known until 2025-01-01: a reason")
    shown = import_module(FORMATS[name][0]).render(make_run(1), [record])
    assert "known until 2025-01-01: a reason" in " ".join(shown.split())
