from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest
from report_pages import HOSTILE, hostile_record
from synthetic_records import BACKENDS, make_records, make_run

from conformance.record import Record, Verdict
from conformance.report import html
from conformance.report.layers import story

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def many() -> list[Record]:
    return make_records(60)


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


def test_html_tells_the_layers_of_a_case_and_draws_them(dom: Dom, many: list[Record]) -> None:
    record = next(record for record in many if len(record.layers) > 6 and any(x.differing for x in record.layers))
    place = urlencode({"case": record.subject.case, "backend": record.backend})
    page = dom(html.render(make_run(60), many), place, "")
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
    assert panel.count('class="marked"') in (1, 2)
    assert "exact" in panel  # the layer without any noise
