"""The command `report` with its options, and `show --script`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from commands import Command
from report_pages import index_of
from synthetic_records import make_records, make_run

from conformance.errors import UsageError
from conformance.record import Debt, Record, Verdict
from conformance.report.rows import row_name
from conformance.store import Results, meant, of_backends, write_all


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    write_all(path, Results(replace(make_run(24), debt=(Debt("qlib", 1), Debt("torchao", 2))), tuple(make_records(24))))
    return path


def test_a_badge_is_made_of_one_backend(conformance: Command, results: Path, tmp_path: Path) -> None:
    records = [record for record in make_records(24) if record.backend == "torchao"]
    native = sum(record.verdict is Verdict.NATIVE for record in records)
    scored = sum(record.verdict not in (Verdict.ERROR, Verdict.UNSUPPORTED) for record in records)
    said = conformance("report", results, "--format", "badge-json", "--backend", "torchao")
    badge = json.loads(said.out)
    assert (badge["label"], badge["message"]) == ("conformance: torchao", f"{native} of {scored} native")
    conformance("report", results, "--format", "badge-svg", "--backend", "torchao", "-o", tmp_path / "badge.svg")
    assert badge["message"] in "".join(ET.parse(tmp_path / "badge.svg").getroot().itertext())


def test_any_format_can_be_about_one_backend(conformance: Command, results: Path) -> None:
    said = conformance("report", results, "--backend", "torchao")
    assert said.code == 0
    assert "torchao:" in said.out and "openvino:" not in said.out and "Incomplete" not in said.out


def test_an_unknown_backend_is_a_mistake(conformance: Command, results: Path) -> None:
    said = conformance("report", results, "--backend", "torchoa")
    assert said.code == 2
    assert "no results of torchoa" in said.err and "'torchao'" in said.err


def test_results_of_some_backends_are_like_those_of_a_run_of_them() -> None:
    whole = Results(replace(make_run(8), debt=(Debt("qlib", 1), Debt("torchao", 2))), tuple(make_records(8)))
    found = of_backends(whole, ("torchao",))
    assert (found.run.backends, found.run.planned, found.run.debt) == (("torchao",), 8, (Debt("torchao", 2),))
    assert {record.backend for record in found.records} == {"torchao"} and len(found.records) == 8
    assert of_backends(whole, ()) == whole


def test_a_name_without_a_target_means_every_target() -> None:
    backends = ("qlib:fast", "qlib:reference", "torchao", "qlibs:fast")
    assert meant(backends, ("qlib",)) == ("qlib:fast", "qlib:reference")
    assert meant(backends, ("torchao", "qlib:reference")) == ("qlib:reference", "torchao")
    assert meant(backends, ()) == backends
    with pytest.raises(UsageError, match="no results of qlib:slow"):
        meant(backends, ("qlib", "qlib:slow"))


def asked(record: Record) -> Record:
    return replace(record, subject=replace(record.subject, fingerprint="0123456789abcdef"))


def test_the_page_tells_what_changed_since_an_earlier_run(conformance: Command, tmp_path: Path) -> None:
    before = [asked(record) for record in make_records(8)]
    at = next(place for place, record in enumerate(before) if record.verdict is Verdict.NATIVE)
    after = [*before[:at], replace(before[at], verdict=Verdict.CRASH), *before[at + 1 :]]
    for name, records in (("before", before), ("after", after)):
        write_all(tmp_path / f"{name}.jsonl", Results(make_run(8), tuple(records)))
    arguments = ("report", "after.jsonl", "--against", "before.jsonl", "--format")
    assert conformance(*arguments, "html", "-o", "report.html").code == 0
    index = index_of((tmp_path / "report.html").read_text())
    changed = [
        (row[0], index["backends"][i])
        for row in index["rows"]
        for i, place in enumerate(row[-1])
        if index["cells"][place][1][4] == "regressed"
    ]
    assert changed == [(row_name(before[at].subject), before[at].backend)]
    assert {cell[1][4] for cell in index["cells"]} == {"", "regressed"}
    said = conformance(*arguments, "markdown")
    assert said.code == 2 and "conformance diff" in said.err


def test_show_prints_a_script_and_runs_nothing(conformance: Command, small: Path) -> None:
    said = conformance("show", "linear_relu[static-trace-bias=false]", small, "--script")
    assert said.code == 0
    assert said.out.startswith('"""small::linear_relu[static-trace-bias=false]')
    assert "nn.Linear(30, 20, bias=false)" not in said.out and "bias=False" in said.out
    done = subprocess.run([sys.executable, "-"], input=said.out, capture_output=True, text=True, check=True)
    assert "operators: quantized::quantize_per_tensor, quantized::linear_relu" in done.stdout
