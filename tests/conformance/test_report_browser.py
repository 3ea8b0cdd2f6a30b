from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from report_pages import HOSTILE, hostile_record
from synthetic_records import BACKENDS, TWELVE, make_record, make_records, make_run, make_subject, recaptured

from conformance.diff import Change, Kind, Shift
from conformance.record import Record, Verdict
from conformance.report import html
from conformance.report.coverage import asked, coverage
from conformance.report.disagreement import disagree
from conformance.report.layers import story
from conformance.report.rows import row_name, rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def many() -> list[Record]:
    return make_records(60)


@pytest.fixture(scope="module")
def page(many: list[Record]) -> str:
    return html.render(make_run(60), many)


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


def panel_of(page: str) -> str:
    return entities.unescape(page[page.index('<dialog id="panel"') : page.index("</dialog>")])


def log_of(page: str) -> Any:
    title = re.search(r"<title>(.*?)</title>", page)
    assert title is not None
    return json.loads(entities.unescape(title[1]))


def shown(page: str) -> str:
    found = re.search(r'id="shown"[^>]*>([^<]*)<', page)
    assert found is not None
    return entities.unescape(found[1])


def test_fragment_filters_the_matrix(dom: Dom, page: str, many: list[Record]) -> None:
    cases = {r.subject.case for r in many if r.verdict is Verdict.WRONG and r.subject.mode == "static"}
    page = dom(page, "verdict=wrong&mode=static", "")
    assert shown(page) == f"showing {len(cases)} of 60 rows"
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


def test_panel_shows_what_is_asked_of_it(dom: Dom, page: str, many: list[Record]) -> None:
    record = next(r for r in many if r.verdict is Verdict.FALLBACK)
    fragment = urlencode({"case": record.subject.case, "backend": record.backend})
    page = dom(page, fragment, "")
    panel = panel_of(page)
    wanted = [
        record.subject.why,
        record.subject.yaml,
        "0 ≠",
        "quanta",
        "rounding",
        "SQNR against float",
        "within a tie",
        "calibrate",
    ]
    item = record.subject.case.removeprefix(f"{record.subject.family}::").replace("[", f"[{record.backend}-")
    wanted += [
        f"pytest '{record.subject.path}::{item}' --backend {record.backend}",
        *record.executed_ops,
        *record.native_ops,
    ]
    assert [text for text in wanted if text not in panel] == []
    assert all(backend in panel for backend in BACKENDS)


def test_an_unknown_case_is_told(dom: Dom, page: str) -> None:
    page = dom(page, "case=nothing/like/it", "")
    assert "no case is called nothing/like/it" in shown(page)


KEYS = """
  await ready;
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


def test_keyboard_moves_opens_steps_closes_and_returns(dom: Dom, page: str) -> None:
    log = log_of(dom(page, "", KEYS))
    assert log == ["nav fold", True, True, True, True, False, True, "false", "q", "#q=linear", 1]


def test_html_tells_the_layers_of_a_case_and_draws_them(dom: Dom, page: str, many: list[Record]) -> None:
    record = next(record for record in many if len(record.layers) > 6 and any(x.differing for x in record.layers))
    place = urlencode({"case": record.subject.case, "backend": record.backend})
    page = dom(page, place, "")
    panel = page[page.index("<dialog") :]
    for sentence in story(record.layers).words:
        assert entities.escape(sentence, quote=False) in panel
    chart = re.search(r"<svg.*?</svg>", panel, re.S)
    assert chart is not None
    drawn = chart[0]
    held = [layer for layer in record.layers if layer.sqnr_final_db is not None]
    assert drawn.count("dot debug") == len(record.layers) and drawn.count("dot final") == len(held)
    assert drawn.count('class="saturated"') == sum(bool(layer.saturated) for layer in record.layers)
    assert "largest drop" in drawn and "debug and final part" in drawn
    assert "NaN" not in drawn and "undefined" not in drawn
    table = panel[panel.index("table of the layers") : panel.index("</dialog>")]
    assert table.count('class="marked"') in (1, 2)
    assert "exact" in panel  # the layer without any noise


def test_backends_that_disagree_types_and_one_backend_are_filters(dom: Dom, page: str, many: list[Record]) -> None:
    by_case: dict[str, list[Record]] = {}
    for record in many:
        by_case.setdefault(record.subject.case, []).append(record)
    wanted = [
        case
        for case, records in by_case.items()
        if any(map(disagree, rows(records)))
        and records[0].subject.dtype == "int8 × int8"
        and any(record.backend == "onnxruntime" and record.verdict is Verdict.FALLBACK for record in records)
    ]
    assert 0 < len(wanted) < 20
    fragment = urlencode({"disagree": "1", "dtype": "int8 × int8", "on": "onnxruntime", "verdict": "fallback"})
    seen = dom(page, fragment, "")
    assert shown(seen) == f"showing {len(wanted)} of 60 rows"
    assert re.findall(r'<th scope="col"[^>]*class="c-backend chosen" title="([^"]*)"', seen) == ["onnxruntime"]


def test_what_regressed_is_a_filter_a_mark_and_a_line_in_the_panel(dom: Dom, many: list[Record]) -> None:
    record = next(record for record in many if record.verdict is Verdict.WRONG)
    shift = Shift("verdict", "native", "wrong")
    change = Change(Kind.REGRESSED, record.backend, record.subject.case, (shift,))
    better = Change(Kind.IMPROVED, many[0].backend, many[0].subject.case, (Shift("verdict", "wrong", "native"),))
    seen = dom(html.render(make_run(60), many, [change, better]), urlencode({"regressed": "1"}), "")
    assert shown(seen) == "showing 1 of 60 rows"
    assert "↓ regressed" in seen
    fragment = urlencode({"case": record.subject.case, "backend": record.backend})
    assert "verdict native → wrong" in panel_of(dom(html.render(make_run(60), many, [change]), fragment, ""))


def test_a_crash_shows_what_its_libraries_printed(dom: Dom, page: str, many: list[Record]) -> None:
    record = next(record for record in many if record.verdict is Verdict.CRASH)
    panel = panel_of(dom(page, urlencode({"case": record.subject.case, "backend": record.backend}), ""))
    assert record.stderr.strip().splitlines()[0] in panel
    assert "Printed by the backend" in panel


def test_the_histogram_counts_every_integer_and_gathers_those_far_off(dom: Dom) -> None:
    first = replace(make_record(make_subject(0)), histogram={"-120": 1, "-9": 2, "-1": 30, "0": 967})
    second = replace(make_record(make_subject(0), "other"), histogram={"0": 1000})
    fragment = urlencode({"case": first.subject.case, "backend": "qlib"})
    panel = panel_of(dom(html.render(make_run(1, ("qlib", "other")), [first, second]), fragment, ""))
    found = re.search(r'<table class="plain histogram">(.*?)</table>', panel, re.S)
    assert found is not None
    heads = re.findall(r'<th scope="col">(.*?)</th>', found[1])
    assert heads == ["backend", "≤ −9", "−8", "−7", "−6", "−5", "−4", "−3", "−2", "−1", "0", "+1"]
    assert re.findall(r'title="(\d+ of \d+ [^"]*)"', found[1])[:2] == ["3 of 1000 (< 1 %)", "0 of 1000 (0 %)"]
    assert "30 of 1000 (3 %)" in found[1] and "1000 of 1000 (100 %)" in found[1]


def test_the_panel_of_a_backend(dom: Dom, page: str, many: list[Record]) -> None:
    panel = panel_of(dom(page, "backend=onnxruntime", ""))
    for text in (
        "native though not declared",
        "as declared",
        "quantized::conv",
        "half_even",
        "rounding",
        "No case asks",
    ):
        assert text in panel, text
    covered = coverage([record for record in many if record.backend == "onnxruntime"], asked(many))
    assert all(f'<th scope="row">{name}</th>' in panel for name, _ in covered.rows)
    assert all(line in panel for line in covered.never_asked())
    assert "onnxruntime has no kernel" in panel


HISTORY = """
  const log = [];
  const pause = () => new Promise((done) => setTimeout(done, 300));
  const seen = () => [location.hash, document.getElementById("shown").textContent, document.getElementById("panel").open];
  await ready;
  log.push(seen());
  const choose = (name, value) => {
    const form = document.getElementById("filters").elements;
    form[name].value = value;
    form[name].dispatchEvent(new Event("input", {bubbles: true}));
    return pause();
  };
  await choose("mode", "qat");
  await choose("q", "lin");
  await choose("q", "linear");
  document.querySelector("thead a").click(); await pause();
  log.push(seen());
  history.back(); await pause();
  log.push(seen());
  history.back(); await pause();
  log.push(seen());
  history.forward(); await pause();
  log.push(seen()[0]);
  document.title = JSON.stringify(log);
"""


def test_back_and_forward_go_through_the_views(dom: Dom, page: str) -> None:
    start, opened, closed, first, again = log_of(dom(page, "", HISTORY))
    assert start == ["", "showing 60 of 60 rows", False]
    assert (opened[0], opened[2]) == ("#mode=qat&q=linear&backend=qlib", True)
    assert (closed[0], closed[2]) == ("#mode=qat&q=linear", False)
    assert first == start
    assert again == "#mode=qat&q=linear"


def test_a_dozen_backends_have_signs_for_cells_that_say_their_verdict(dom: Dom) -> None:
    records = make_records(16, TWELVE)
    seen = dom(html.render(make_run(16, TWELVE), records), "", "")
    cells = re.findall(
        r'<td role="cell" data-backend="([^"]*)" class="verdict v-(\w+)" title="[^"]*" aria-label="(\w+)', seen
    )
    assert len(cells) == len(records)
    assert {(backend, verdict) for backend, verdict, _ in cells} == {(r.backend, r.verdict) for r in records}
    assert all(verdict == label for _, verdict, label in cells)
    assert re.findall(r'data-page="([^"]*)"', seen)[:12] == list(TWELVE)


@pytest.fixture(scope="module")
def joined() -> list[Record]:
    """A case by two captures that differ, and by one more on a backend that knows no other; a second case by trace."""
    one, two = make_subject(0), make_subject(1)
    traced = recaptured(one, "trace")
    return [
        make_record(one, "both"),
        make_record(traced, "both", Verdict.WRONG),
        make_record(one, "tracer", Verdict.UNSUPPORTED),
        make_record(traced, "tracer"),
        make_record(one, "neither", Verdict.UNSUPPORTED),
        make_record(traced, "neither", Verdict.UNSUPPORTED),
        make_record(recaptured(two, "script"), "both"),
    ]


def cells_of(page: str) -> list[tuple[str, str]]:
    """Title and text of each cell that is not hidden."""
    rows = re.findall(r'<tr role="row" class="case">(.*?)</tr>', page, re.S)
    cells = [found for row in rows for found in re.findall(r'<td [^>]*class="verdict[^>]*>.*?</td>', row, re.S)]
    title, text = re.compile(r'title="([^"]*)"'), re.compile(r"<small.*?</small>|<[^>]*>", re.S)
    return [(found[1], text.sub("", cell)) for cell in cells if (found := title.search(cell))]


def test_a_cell_joins_captures_and_a_filter_narrows_it_to_one(dom: Dom, joined: list[Record]) -> None:
    page = html.render(make_run(7, ("both", "tracer", "neither")), joined)
    whole = dom(page, "", "")
    assert shown(whole) == "showing 2 of 2 rows"
    assert cells_of(whole) == [
        ("both: wrong (export: native; trace: wrong)", "✗ wrong"),
        ("tracer: native (export: unsupported; trace: native)", "✓ native"),
        ("neither: unsupported", "– unsupported"),
        ("both: native", "✓ native"),
        ("tracer: not run", "not run"),
        ("neither: not run", "not run"),
    ]
    narrowed = dom(page, "capture=export", "")
    assert shown(narrowed) == "showing 1 of 2 rows"
    exported = [("both: native", "✓ native"), ("tracer: unsupported", "– unsupported")]
    assert cells_of(narrowed) == [*exported, ("neither: unsupported", "– unsupported")]
    # By trace alone `both` is wrong where `tracer` is native; by export nobody contradicts anybody.
    assert shown(dom(page, "capture=trace&disagree=1", "")) == "showing 1 of 2 rows"
    assert shown(dom(page, "capture=export&disagree=1", "")) == "showing 0 of 2 rows"
    assert shown(dom(page, "capture=export&verdict=wrong", "")) == "showing 0 of 2 rows"
    # The search knows the ids of cases, with their captures.
    assert shown(dom(page, "q=static-trace-bias", "")) == "showing 1 of 2 rows"


def pressed(page: str) -> str:
    found = re.findall(r'aria-pressed="true" aria-label="([^"]*)"', page)
    assert len(found) == 1
    return str(found[0])


def test_links_with_and_without_a_capture_open_the_panel_of_the_row(dom: Dom, joined: list[Record]) -> None:
    page = html.render(make_run(7, ("both", "tracer", "neither")), joined)
    exported, traced = joined[0].subject.case, joined[1].subject.case
    name = row_name(joined[0].subject)
    wanted = {
        urlencode({"case": exported}): "both export: native",
        urlencode({"case": traced}): "both trace: wrong",
        urlencode({"case": exported, "backend": "tracer"}): "tracer export: unsupported",
        urlencode({"case": name}): "both trace: wrong",
        urlencode({"case": name, "backend": "tracer"}): "tracer trace: native",
        urlencode({"case": name, "backend": "both", "capture": "export"}): "both export: native",
    }
    for fragment, label in wanted.items():
        seen = dom(page, fragment, "")
        panel = panel_of(seen)
        assert pressed(panel) == label
        assert f"{name}</h2>" in panel and shown(seen).endswith(" rows")
        assert panel.count("aria-pressed") == 6
        backend, capture = label.partition(":")[0].split()
        case = exported if capture == "export" else traced
        assert f"conformance show '{case}' --backend {backend}" in panel


CHOOSE = """
  await ready;
  const log = [];
  const pause = () => new Promise((done) => setTimeout(done, 300));
  const cells = () => [...document.querySelectorAll("tr.case:not([hidden]) td.verdict")].map((cell) => cell.textContent.split(" ")[1]);
  const chips = () => [...document.querySelectorAll(".chip")].filter((chip) => !chip.hidden).map((chip) => chip.textContent.trim());
  const select = document.getElementById("filters").elements.capture;
  for (const capture of ["export", ""]) {
    select.value = capture;
    select.dispatchEvent(new Event("input", {bubbles: true})); await pause();
    log.push([cells(), chips()]);
  }
  document.querySelector("tr.case td.verdict").click(); await pause();
  document.querySelector('[data-keep="on tracer export"]').click(); await pause();
  log.push([...new URLSearchParams(location.hash.slice(1))]);
  document.title = JSON.stringify(log);
"""


def test_choosing_a_capture_draws_cells_and_chips_anew(dom: Dom, joined: list[Record]) -> None:
    page = html.render(make_run(7, ("both", "tracer", "neither")), joined)
    exported, whole, address = log_of(dom(page, "", CHOOSE))
    assert exported == [["native", "unsupported", "unsupported"], ["✓ native 1", "– unsupported 2"]]
    assert whole[0] == ["wrong", "native", "unsupported", "native", "run", "run"]
    assert whole[1] == ["✓ native 2", "✗ wrong 1", "– unsupported 1", "unexpected failures 1", "≠ disagree 1"]
    assert address == [["case", joined[0].subject.case], ["backend", "tracer"]]
