from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from commands import Command
from offered import offer
from small_specs import LINEAR, UNSUPPORTED, VERDICTS, written

from conformance.backends import qlib as bundled
from conformance.backends.qlib import vocabulary
from conformance.case import expand
from conformance.catalog import CATALOGS, catalog
from conformance.known import known_schema
from conformance.load import load
from conformance.places import bundled_specs
from conformance.record import Verdict
from conformance.report import FORMATS
from conformance.spec import json_schema
from conformance.store import read

MISTAKEN = """\
spec: 1
suite: small
cases:
  - id: linear
    why: two mistakes
    module: nn.Liner(30, 20)
    inputs: {x: {shape: [4, 30]}}
    expects: {}
    expect: {ops: {quantized::linear: 1}}
"""


def verdicts(results: Path) -> dict[tuple[str, str], Verdict]:
    return {(record.backend, record.subject.case): record.verdict for record in read(results).records}


# ---- run


def test_a_run_of_native_cases_ends_with_0_and_three_files(conformance: Command, small: Path, tmp_path: Path) -> None:
    said = conformance("run", small)
    assert (said.code, said.err) == (0, "")
    assert "6 of 6" in said.out
    for name in ("results.jsonl", "report.md", "report.html"):
        assert (tmp_path / "results" / name).stat().st_size > 500
        assert f"results/{name}" in said.out
    found = read(tmp_path / "results" / "results.jsonl").run
    assert (found.planned, found.command) == (6, f"conformance run {small}")


def test_a_failure_ends_with_1_and_is_named(conformance: Command, tmp_path: Path) -> None:
    path = written(tmp_path, VERDICTS, "verdicts")
    said = conformance("run", path, "-o", tmp_path / "o")
    assert said.code == 1
    assert {
        case.partition("::")[2].partition("[")[0]: str(v)
        for (_, case), v in verdicts(tmp_path / "o" / "results.jsonl").items()
    } == {name: name for name in ("native", "fallback", "wrong", "error", "vacuous")}
    for name in ("fallback", "wrong", "error", "vacuous"):
        assert f"verdicts::{name}[static-export]" in said.out.replace("\n", "")


def test_what_a_backend_declared_that_it_can_not_is_no_failure(
    conformance: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "MODES", bundled.MODES - {"qat"})
    path = written(tmp_path, UNSUPPORTED, "unsupported")
    said = conformance("run", path, "-o", tmp_path / "o")
    assert said.code == 0
    assert list(verdicts(tmp_path / "o" / "results.jsonl").values()) == ["unsupported"]
    assert "unsup" in said.out


def test_two_workers_find_what_one_process_finds(conformance: Command, tmp_path: Path) -> None:
    path = written(tmp_path, VERDICTS, "verdicts")
    codes = [conformance("run", path, "-n", n, "-o", tmp_path / str(n)).code for n in (1, 2)]
    assert codes == [1, 1]
    one, two = (verdicts(tmp_path / str(n) / "results.jsonl") for n in (1, 2))
    assert one == two and len(one) == 5


MINIATURES = {
    "always-wrong": "wrong",
    "off-by-one": "wrong",
    "float-only": "fallback",
    "claims-everything": "fallback",
    "undeclared-refusal": "wrong",
    "first-call-only": "wrong",
}


def test_the_miniatures_get_their_verdicts_here_too(conformance: Command, small: Path, tmp_path: Path) -> None:
    backends = [word for name in MINIATURES for word in ("--backend", name)]
    assert conformance("run", small, *backends).code == 1
    found = verdicts(tmp_path / "results" / "results.jsonl")
    assert len(found) == 6 * len(MINIATURES)
    assert {(backend, str(verdict)) for (backend, _), verdict in found.items()} == set(MINIATURES.items())


@pytest.mark.parametrize(("backend", "verdict", "seconds"), [("crashes", "crash", 60), ("hangs", "timeout", 1.5)])
def test_those_that_crash_and_hang_get_theirs(
    backend: str, verdict: str, seconds: float, conformance: Command, small: Path, tmp_path: Path
) -> None:
    said = conformance("run", small, "--backend", backend, "--mode", "dynamic", "--timeout", seconds)
    assert said.code == 1
    assert [str(each) for each in verdicts(tmp_path / "results" / "results.jsonl").values()] == [verdict]


def test_cases_are_chosen_by_mode_capture_and_text(conformance: Command, small: Path, tmp_path: Path) -> None:
    results = tmp_path / "results" / "results.jsonl"
    for options, count in (
        (["--mode", "dynamic"], 1),
        (["--mode", "dynamic", "--mode", "static"], 6),
        (["--capture", "trace"], 2),
        (["-k", "bias=true"], 2),
        (["--capture", "export", "-k", "linear_relu"], 2),
    ):
        assert conformance("run", small, *options).code == 0
        assert len(read(results).records) == count
    said = conformance("run", small, "-k", "conv")
    assert (said.code, said.err) == (2, "none of the 6 cases is left by --mode, --capture and -k\n")


def test_folders_are_searched(conformance: Command, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    written(tmp_path / "a" / "b", LINEAR)
    written(tmp_path / "a", LINEAR.replace("suite: small", "suite: other"), "other")
    assert "12 of 12" in conformance("run", tmp_path / "a").out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["run", "{small}", "--backend", "qlibb"], 2, "Did you mean 'qlib'?"),
        (["run", "{small}", "--backend", "qlib:fastt"], 2, "expected one of fast, reference"),
        (["run", "{small}", "--mode", "sttic"], 2, "'sttic' is not one of"),
        (["run", "{small}", "-n", "0"], 2, "0 is not in the range"),
        (["run", "{small}", "--no-such-option"], 2, "No such option"),
        (["run", "{tmp}/nowhere"], 2, "no such file or folder"),
        (["run", "{tmp}/empty"], 2, "no *.qspec.yaml file"),
        (["run", "{tmp}/bad.qspec.yaml"], 2, "Did you mean"),
        (["run", "{small}", "-o", "{tmp}/file/below"], 3, "can't be written"),
        (["run", "{small}", "--backend", "uninstalled"], 3, "no_such_package_of_test"),
        (["run", "{small}", "--backend", "dead"], 3, "exit status 9"),
        (["frobnicate"], 2, "No such command"),
        (["list", "everything"], 2, "is not one of"),
        (["show", "no_such_case", "{small}"], 2, "no case is named 'no_such_case'"),
        (["show", "linear", "{small}"], 2, "6 cases fit 'linear'"),
        (["report", "{tmp}/missing.jsonl"], 2, "can't be read"),
        (["report", "{small}"], 2, "head of a run"),
        (["run", "{small}", "--shard", "3/2"], 2, "such as 2/3"),
        (["run", "{small}", "--resume", "{tmp}/missing.jsonl"], 2, "can't be read"),
        (["diff", "{small}", "{small}"], 2, "head of a run"),
        (["merge", "{tmp}/missing.jsonl", "-o", "{tmp}/o.jsonl"], 2, "can't be read"),
        (["expect", "lint", "--backend", "qlibb"], 2, "Did you mean 'qlib'?"),
        (["expect", "update", "{tmp}/missing.jsonl"], 2, "can't be read"),
    ],
)
def test_exit_codes_of_mistakes_and_of_the_environment(
    arguments: list[str],
    code: int,
    text: str,
    conformance: Command,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    written(tmp_path, MISTAKEN, "bad")
    said = conformance(*(word.format(small=small, tmp=tmp_path) for word in arguments))
    assert said.code == code
    assert text in said.err.replace("\n", " ")
    assert "Traceback" not in said.err + said.out


def test_results_of_an_earlier_run_outlive_a_misspelt_backend(
    conformance: Command, small: Path, tmp_path: Path
) -> None:
    conformance("run", small)
    conformance("run", small, "--backend", "qlibb")
    assert len(read(tmp_path / "results" / "results.jsonl").records) == 6


def test_known_failures_are_no_failures_and_must_fail(
    conformance: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformance import known_file

    (tmp_path / "expected").mkdir()
    expected = tmp_path / "expected" / "float-only.yaml"
    monkeypatch.setattr(known_file, "bundled_specs", lambda: tmp_path)
    expected.write_text(
        "".join(f"- {{case: small::{spec}, verdict: fallback, reason: floats}}\n" for spec in ("linear", "linear_relu"))
    )
    assert conformance("run", small, "--backend", "float-only").code == 0
    (tmp_path / "expected" / "qlib.yaml").write_text("- {case: small::linear, verdict: wrong, reason: old}\n")
    said = conformance("run", small)
    assert said.code == 1 and "old" in said.out
    expected.write_text("- {case: a}\n")
    said = conformance("run", small, "--backend", "float-only")
    assert said.code == 2 and str(expected) in said.err


# ---- list, lint, schema, show, report


@pytest.mark.parametrize("what", CATALOGS)
def test_every_table_is_listed_with_a_line_an_entry(what: str, conformance: Command) -> None:
    said = conformance("list", what)
    assert (said.code, said.err) == (0, "")
    entries = catalog(what)
    assert said.out.count("\n") == len(entries) > 0
    for line, (name, doc) in zip(said.out.splitlines(), entries.items(), strict=True):
        assert line.split()[0] == name
        assert doc and line.endswith(doc)


def test_cases_are_listed_by_id(conformance: Command, small: Path) -> None:
    said = conformance("list", "cases", small, "--mode", "static", "-k", "bias=true")
    assert [line.split("  ")[0] for line in said.out.splitlines()] == [
        f"small::linear_relu[static-{capture}-bias=true]" for capture in ("export", "trace")
    ]
    assert all(line.endswith("  the pattern that every backend has") for line in said.out.splitlines())
    everything = conformance("list", "cases").out.splitlines()
    bundled = [
        case.id for path in sorted(bundled_specs().glob("*.qspec.yaml")) for case in expand(load(path, vocabulary()))
    ]
    assert [line.split("  ")[0] for line in everything] == bundled


def test_lint_of_right_files(conformance: Command, small: Path) -> None:
    said = conformance("lint", small)
    assert (said.code, said.out) == (0, "1 files, 2 specs, 6 cases: no mistakes\n")


def test_lint_prints_every_mistake_of_every_file_with_its_place(
    conformance: Command, small: Path, tmp_path: Path
) -> None:
    first, second = written(tmp_path, MISTAKEN, "first"), written(tmp_path, MISTAKEN, "second")
    said = conformance("lint", tmp_path)
    assert said.code == 2 and said.out == ""
    for path in (first, second):
        assert f"{path}:6:16: " in said.err or f"{path}:6:13: " in said.err
        assert f"{path}:8:5: unknown key 'expects'" in said.err
    assert said.err.count("    module: nn.Liner(30, 20)") == 2
    assert said.err.endswith("4 mistake(s)\n")


def test_lint_schema_and_list_need_no_torch(small: Path) -> None:
    script = f"""if True:
        import sys
        from conformance.__main__ import cli
        for words in (["lint", {str(small)!r}], ["lint"], ["schema"], ["list", "cases"], ["list", "ops"], ["--help"]):
            cli(words, standalone_mode=False)
            assert "torch" not in sys.modules, words
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_schema_is_printed(conformance: Command) -> None:
    assert json.loads(conformance("schema").out) == json_schema()
    assert json.loads(conformance("schema", "expected").out) == known_schema()


def test_a_case_is_shown(conformance: Command, small: Path) -> None:
    said = conformance("show", "linear_relu[static-export-bias=true]", small)
    assert said.code == 0
    for text in ("id: linear_relu", "Linear(in_features=30", "quantized::linear_relu", "native", "milliseconds"):
        assert text in said.out, text
    assert conformance("show", "linear_relu[static-export-bias=t", small, "--backend", "always-wrong").code == 1


def test_results_are_rendered_in_every_format(conformance: Command, small: Path, tmp_path: Path) -> None:
    conformance("run", small, "--backend", "qlib", "--backend", "float-only")
    results = tmp_path / "results" / "results.jsonl"
    for name, (_, suffix) in FORMATS.items():
        said = conformance("report", results, "--format", name)
        assert (said.code, said.err) == (0, "")
        assert ("conformance" if name.startswith("badge") else "small") in said.out
        target = tmp_path / "new" / f"report{suffix}"
        assert conformance("report", results, "--format", name, "-o", target).out == f"written: {target}\n"
        assert target.read_text().strip() == said.out.strip()
    suite = ET.fromstring((tmp_path / "new" / "report.xml").read_text())
    assert len(suite.findall(".//testcase")) == 12
    assert len(suite.findall(".//failure")) == 6
    assert conformance("report", results, "--format", "pdf").code == 2


def test_a_damaged_file_is_rendered_and_said_to_be(conformance: Command, small: Path, tmp_path: Path) -> None:
    conformance("run", small)
    results = tmp_path / "results" / "results.jsonl"
    results.write_bytes(results.read_bytes()[:-30])
    said = conformance("report", results)
    assert said.code == 0
    assert said.err == f"{results}: 1 line(s) could not be read and are left out\n"


def test_help_and_version(conformance: Command) -> None:
    said = conformance("--help")
    assert said.code == 0
    for name in ("run", "list", "show", "lint", "schema", "report", "diff", "merge", "expect"):
        assert f"\n  {name} " in said.out
        assert conformance(name, "-h").code == 0
    assert "conformance, version" in conformance("--version").out


def test_the_console_script_is_the_same_program() -> None:
    script = Path(sys.executable).parent / "conformance"
    assert script.exists() and os.access(script, os.X_OK)
    done = subprocess.run([script, "frobnicate"], capture_output=True, text=True, check=False)
    assert done.returncode == 2


def test_a_case_is_written_in_onnx(conformance: Command, small: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", minversion="1.20")
    target = tmp_path / "case.onnx"
    said = conformance("export", "linear_relu[static-export-bias=true]", small, "--onnx", target)
    assert (said.code, said.err) == (0, ""), said.err
    model = onnx.load(target)
    assert model.graph.name == "small::linear_relu[static-export-bias=true]"
    assert "QuantizeLinear" in [node.op_type for node in model.graph.node]


def test_a_case_that_onnx_can_not_express_is_a_mistake(conformance: Command, tmp_path: Path) -> None:
    pytest.importorskip("onnx", minversion="1.20")
    specs = bundled_specs() / "arithmetic.qspec.yaml"
    rounded = next(case.id for case in expand(load(specs, vocabulary())) if case.spec_id == "rounded_quotient")
    said = conformance("export", rounded, specs, "--onnx", tmp_path / "x")
    assert said.code == 2 and "can't write aten::div" in said.err
    assert not (tmp_path / "x").exists()
