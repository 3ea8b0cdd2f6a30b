"""The commands that go on from results files: run --shard and --resume, diff, merge, expect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import Command
from offered import offer
from small_specs import LINEAR, VERDICTS, written

from conformance import expect_commands, known_file
from conformance.record import Verdict
from conformance.shard import Shard
from conformance.store import read


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the suite's own files of known failures, here an empty one."""
    for module in (known_file, expect_commands):
        monkeypatch.setattr(module, "bundled_specs", lambda: tmp_path / "suite")
    (tmp_path / "suite" / "expected").mkdir(parents=True)
    return tmp_path / "suite" / "expected"


def keys(path: Path) -> list[tuple[str, str]]:
    return [(record.backend, record.subject.case) for record in read(path).records]


# ---- resume


def test_a_run_that_was_cut_off_goes_on_where_it_was(conformance: Command, small: Path, tmp_path: Path) -> None:
    command = ("run", small, "--backend", "qlib", "--backend", "float-only")
    conformance(*command)
    whole = tmp_path / "results" / "results.jsonl"
    part = tmp_path / "part" / "part.jsonl"
    part.parent.mkdir()
    lines = whole.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    said = conformance(*command, "--resume", part)
    assert (said.code, said.err) == (1, "")
    assert part.read_bytes().startswith(b"".join(lines[:5]))
    assert sorted(keys(part)) == sorted(keys(whole)) and len(keys(part)) == 12
    assert read(part).damaged == 0
    assert "6 of 6" in said.out and "Incomplete" not in said.out
    assert (part.parent / "report.html").exists()


def test_a_finished_run_runs_nothing_again(conformance: Command, small: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        conformance("run", small, "-n", workers)
        results = tmp_path / "results" / "results.jsonl"
        before = results.read_bytes()
        assert conformance("run", small, "-n", workers, "--resume", results).code == 0
        assert results.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--backend", "float-only"], "backends: qlib; now float-only"),
        (["--mode", "static"], "cases that are gone: 1 (small::linear[dynamic-export])"),
        (["--shard", "1/2"], "shard: all, now 1/2"),
        (["torch"], "package: torch 1.0, now 2."),
        (["old"], "it holds no plan"),
    ],
)
def test_another_plan_is_not_resumed(
    change: list[str], text: str, conformance: Command, small: Path, tmp_path: Path
) -> None:
    conformance("run", small)
    results = tmp_path / "results" / "results.jsonl"
    options = change if change[0].startswith("--") else []
    if change in (["torch"], ["old"]):
        head, *rest = results.read_text().splitlines(keepends=True)
        data = json.loads(head)
        data["run"]["environment"]["packages"]["torch"] = "1.0"
        if change == ["old"]:
            for key in ("cases", "shard", "declared", "debt"):
                del data["run"][key]
        results.write_text(json.dumps(data) + "\n" + "".join(rest))
    before = results.read_bytes()
    said = conformance("run", small, *options, "--resume", results)
    assert said.code == 2
    assert text in said.err and "run without --resume" in said.err
    assert results.read_bytes() == before


def test_cases_whose_spec_has_changed_are_run_again(conformance: Command, small: Path, tmp_path: Path) -> None:
    conformance("run", small)
    results = tmp_path / "results" / "results.jsonl"
    before, first = results.read_bytes(), read(results)
    small.write_text(LINEAR.replace("sqnr_db: 30", "sqnr_db: 200"))
    assert conformance("run", small, "--resume", results).code == 1
    after = read(results)
    assert results.read_bytes().startswith(before)
    assert [record.subject.case for record in after.records] == [record.subject.case for record in first.records]
    assert after.run.cases.keys() == first.run.cases.keys() and after.run.cases != first.run.cases
    changed = [case for case in first.run.cases if first.run.cases[case] != after.run.cases[case]]
    wrong = [record.subject.case for record in after.records if str(record.verdict) == "wrong"]
    assert sorted(wrong) == sorted(changed) != []


def test_records_are_marked_by_the_known_failures_of_now(
    conformance: Command, small: Path, tmp_path: Path, expected: Path
) -> None:
    assert conformance("run", small, "--backend", "float-only").code == 1
    results = tmp_path / "results" / "results.jsonl"
    assert conformance("expect", "update", results, "--specs", small, "--reason", "it has no kernels").code == 0
    said = conformance("run", small, "--backend", "float-only", "--resume", results)
    assert said.code == 0, said.out
    after = read(results)
    assert {record.known for record in after.records} == {"it has no kernels"}
    assert [debt.entries > 0 for debt in after.run.debt] == [True] and after.run.planned == len(after.records)
    size = results.stat().st_size
    assert conformance("run", small, "--backend", "float-only", "--resume", results).code == 0
    assert results.stat().st_size == size, "nothing has changed since"


def test_new_cases_are_run(conformance: Command, small: Path, tmp_path: Path) -> None:
    conformance("run", small)
    results = tmp_path / "results" / "results.jsonl"
    first = read(results)
    more = small.with_name("more.qspec.yaml")
    more.write_text(LINEAR.replace("suite: small", "suite: more"))
    assert conformance("run", small, more, "--resume", results).code == 0
    after = read(results)
    assert after.run.planned == len(after.records) == 2 * len(first.records)


# ---- shards


def test_shards_are_run_and_joined(conformance: Command, small: Path, tmp_path: Path) -> None:
    backends = ("--backend", "qlib", "--backend", "float-only")
    conformance("run", small, *backends)
    shards = []
    for index in (1, 2, 3):
        assert conformance("run", small, *backends, "--shard", f"{index}/3", "-o", index).code in {0, 1}
        shards.append(tmp_path / str(index) / "results.jsonl")
        found = read(shards[-1])
        assert found.run.planned == len(found.records) and found.run.shard == f"{index}/3"
        assert len(found.run.cases) == 6
        assert all(Shard(index, 3).holds(record.subject.case) for record in found.records)
    whole = tmp_path / "whole.jsonl"
    said = conformance("merge", *shards, "-o", whole)
    assert (said.code, said.out) == (0, f"written: {whole} (12 of 12 records)\n")
    assert keys(whole) == keys(tmp_path / "results" / "results.jsonl")
    said = conformance("diff", tmp_path / "results" / "results.jsonl", whole)
    assert (said.code, said.out.splitlines()[0]) == (
        0,
        "0 incomparable, 0 regressed, 0 improved, 0 changed, 0 removed, 0 added, 12 as before",
    )
    for name in ("junit", "markdown", "html", "terminal"):
        assert "small" in conformance("report", whole, "--format", name).out


def test_a_share_without_cases_is_an_empty_success(conformance: Command, small: Path, tmp_path: Path) -> None:
    codes = [conformance("run", small, "--shard", f"{index}/40", "-o", index).code for index in range(1, 41)]
    assert set(codes) == {0}
    results = [tmp_path / str(index) / "results.jsonl" for index in range(1, 41)]
    assert any(not read(path).records for path in results)
    assert conformance("merge", *results, "-o", tmp_path / "o.jsonl").code == 0


def test_a_missing_shard_fails_and_its_cases_are_named(conformance: Command, small: Path, tmp_path: Path) -> None:
    for index in (1, 2):
        conformance("run", small, "--shard", f"{index}/2", "-o", index)
    lacking = keys(tmp_path / "2" / "results.jsonl")
    said = conformance("merge", tmp_path / "1" / "results.jsonl", "-o", tmp_path / "o.jsonl")
    assert said.code == 1
    assert f"{len(lacking)} planned record(s) are missing:" in said.err
    assert all(f"  {case} on {backend}\n" in said.err for backend, case in lacking)
    assert f"Incomplete: {len(lacking)} of 6" in conformance("report", tmp_path / "o.jsonl").out
    first = tmp_path / "1" / "results.jsonl"
    said = conformance("merge", first, first, "-o", tmp_path / "p.jsonl")
    assert said.code == 2 and "twice" in said.err
    assert not (tmp_path / "p.jsonl").exists()


# ---- diff


def test_a_regression_ends_with_1_and_an_improvement_with_0(conformance: Command, tmp_path: Path) -> None:
    path = written(tmp_path, VERDICTS, "verdicts")
    conformance("run", path, "-k", "native", "-o", "good")
    good = tmp_path / "good" / "results.jsonl"
    bad = tmp_path / "bad.jsonl"
    bad.write_text(good.read_text().replace('"verdict":"native"', '"verdict":"wrong"'))
    said = conformance("diff", good, bad)
    assert said.code == 1 and "verdict native → wrong" in said.out
    assert conformance("diff", bad, good).code == 0
    known = tmp_path / "known.jsonl"
    known.write_text(bad.read_text().replace('"known":null', '"known":"declared"'))
    said = conformance("diff", good, known)
    assert said.code == 0 and "known: declared" in said.out


def test_what_is_incomparable_ends_with_2(conformance: Command, small: Path, tmp_path: Path) -> None:
    conformance("run", small, "-o", "one")
    small.write_text(LINEAR.replace("nn.Linear(30, 20)\n", "nn.Linear(30, 21)\n"))
    conformance("run", small, "-o", "two")
    said = conformance("diff", tmp_path / "one" / "results.jsonl", tmp_path / "two" / "results.jsonl")
    assert said.code == 2
    assert "incomparable: 2." in said.out and "version of the case" in said.out and "4 as before" in said.out


def test_an_incomplete_run_is_no_success(conformance: Command, small: Path, tmp_path: Path) -> None:
    conformance("run", small)
    whole, part = tmp_path / "results" / "results.jsonl", tmp_path / "part.jsonl"
    part.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:-1]))
    said = conformance("diff", whole, part)
    assert said.code == 1 and "incomplete: 1 planned records of the second file are missing" in said.out
    assert conformance("diff", part, whole).code == 0


def test_a_difference_is_written_as_json_and_markdown(conformance: Command, small: Path, tmp_path: Path) -> None:
    conformance("run", small)
    results = tmp_path / "results" / "results.jsonl"
    said = conformance("diff", results, results, "--format", "json")
    assert json.loads(said.out)["same"] == 6
    target = tmp_path / "new" / "d.md"
    assert conformance("diff", results, results, "--format", "markdown", "-o", target).out == f"written: {target}\n"
    assert target.read_text().startswith("## 0 incomparable")


# ---- expect


def test_failures_are_written_accepted_and_linted(
    conformance: Command, small: Path, tmp_path: Path, expected: Path
) -> None:
    results = tmp_path / "results" / "results.jsonl"
    shutil.copy(Path(__file__).parents[2] / "specs" / "expected" / "schema.json", expected)
    command = ("run", small, "--backend", "float-only")
    assert conformance(*command).code == 1
    said = conformance("expect", "update", results, "--specs", small)
    path = expected / "float-only.yaml"
    assert (said.code, said.out) == (0, f"float-only: 2 entries for 6 cases added to {path}\n")
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n# Known failures of float-only")
    assert conformance("expect", "update", results, "--specs", small).out == "float-only: nothing to add\n"
    assert path.read_text() == text
    said = conformance(*command)
    assert said.code == 0 and "No unexpected failures" in said.out
    said = conformance("expect", "lint", results, "--specs", small)
    assert (said.code, said.out) == (0, "1 files, 2 known failures: no mistakes\n")


def test_what_stands_in_a_file_outlives_an_update(
    conformance: Command, small: Path, tmp_path: Path, expected: Path
) -> None:
    path = expected / "float-only.yaml"
    text = "# ours\n- case: small::linear   # the layer\n  verdict: fallback\n  reason: floats\n# the end\n"
    path.write_text(text)
    conformance("run", small, "--backend", "float-only")
    said = conformance(
        "expect", "update", tmp_path / "results" / "results.jsonl", "--specs", small, "--reason", "it's: odd"
    )
    assert "1 entries for 4 cases" in said.out
    after = path.read_text()
    assert after.startswith(text)
    assert "- case: small::linear_relu\n" in after[len(text) :] and 'reason: "it\'s: odd"\n' in after


def test_targets_have_entries_of_their_own(conformance: Command, tmp_path: Path, expected: Path) -> None:
    path = written(tmp_path, VERDICTS, "verdicts")
    command = ("run", path, "--backend", "qlib:reference", "--backend", "qlib")
    conformance(*command)
    results = tmp_path / "results" / "results.jsonl"
    said = conformance("expect", "update", results, "--backend", "qlib:reference", "--specs", path)
    assert "3 entries for 3 cases" in said.out and "1 of verdict error are not written" in said.out
    assert (expected / "qlib.yaml").read_text().count("  target: reference\n") == 3
    conformance(*command)
    failed = [record.backend for record in read(results).records if record.failed]
    assert (failed.count("qlib:reference"), failed.count("qlib")) == (1, 4)


def test_stale_expired_and_nameless_entries_fail_lint(
    conformance: Command, small: Path, tmp_path: Path, expected: Path
) -> None:
    conformance("run", small)
    results = tmp_path / "results" / "results.jsonl"
    path = expected / "qlib.yaml"
    path.write_text(
        "- {case: small::linear, verdict: wrong, reason: old}\n"
        "- {case: small::linear, verdict: wrong, reason: old, expires: 2020-01-01}\n"
        "- {case: small::liner, verdict: wrong, reason: old}\n"
    )
    said = conformance("expect", "lint", results, "--specs", small)
    assert said.code == 2 and said.out == ""
    assert f"{path}:1:3: stale: none of the 2 cases run is wrong" in said.err
    assert f"{path}:2:63: expired on 2020-01-01" in said.err or "expired on 2020-01-01" in said.err
    assert f"{path}:3:10: no spec is named 'small::liner'. Did you mean 'small::linear'?" in said.err
    assert said.err.endswith("3 mistake(s)\n")
    assert "    3 | - {case: small::liner, verdict: wrong, reason: old}\n" in said.err
    path.write_text("- {case: small::linear, verdict: wrong, reason: old}\n")
    said = conformance("expect", "lint", "--specs", small)
    assert (said.code, said.out) == (0, "1 files, 1 known failures: no mistakes; give RESULTS to find the stale\n")


def test_files_of_no_backend_and_with_mistakes_fail_lint(conformance: Command, small: Path, expected: Path) -> None:
    (expected / "qlibb.yaml").write_text("[]\n")
    (expected / "qlib.yaml").write_text("- {case: a::b}\n")
    said = conformance("expect", "lint", "--specs", small)
    assert said.code == 2
    assert "qlibb.yaml:1:1: no backend is named 'qlibb'" in said.err
    assert "qlib.yaml:1:3: missing keys 'verdict', 'reason'" in said.err


def test_a_failure_whose_entry_expired_fails_and_says_so(
    conformance: Command, small: Path, tmp_path: Path, expected: Path
) -> None:
    (expected / "float-only.yaml").write_text(
        "- {case: small::linear, verdict: fallback, reason: floats, expires: 2020-01-01}\n"
        "- {case: small::linear_relu, verdict: fallback, reason: other, versions: {torch: '<2'}, since: 2019-05-01}\n"
    )
    said = conformance("run", small, "--backend", "float-only")
    assert said.code == 1
    assert "known until 2020-01-01: floats" in " ".join(said.out.split())
    found = read(tmp_path / "results" / "results.jsonl")
    assert [record.lapsed is not None for record in found.records] == [
        record.subject.spec == "linear" for record in found.records
    ]
    assert (found.run.debt[0].entries, found.run.debt[0].expired, found.run.debt[0].elsewhere) == (2, 1, 1)
    assert found.run.debt[0].oldest == "2019-05-01"
    assert all(record.verdict is Verdict.FALLBACK for record in found.records)


def test_a_backend_of_another_distribution_keeps_its_own_file(
    conformance: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Path
) -> None:
    offer(tmp_path, monkeypatch)
    conformance("run", small, "--backend", "moody", "--mode", "static", "--capture", "export")
    results = tmp_path / "results" / "results.jsonl"
    said = conformance("expect", "update", results, "--specs", small)
    path = tmp_path / "expected" / "moody.yaml"
    assert f"added to {path}" in said.out
    assert "schema" not in path.read_text()
    assert conformance("run", small, "--backend", "moody", "--mode", "static", "--capture", "export").code == 0
    assert conformance("expect", "lint", "--backend", "moody", "--specs", small).code == 0


def test_the_suites_own_files_are_right(conformance: Command) -> None:
    said = conformance("expect", "lint")
    assert (said.code, said.err) == (0, "")


def test_the_schema_that_editors_read_is_the_one_that_is_printed(conformance: Command) -> None:
    written_down = Path(__file__).parents[2] / "specs" / "expected" / "schema.json"
    assert written_down.read_text() == conformance("schema", "expected").out, (
        "write it anew: conformance schema expected > specs/expected/schema.json"
    )


# ---- publish


def test_a_published_folder_stands_on_its_own(conformance: Command, small: Path, tmp_path: Path) -> None:
    conformance("run", small, "--backend", "qlib", "--backend", "float-only")
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "FINDINGS.md").write_text("# Findings in others\n\n# torch\n\n## `op`: wrong by 3 quanta\n\nText.\n")
    done = conformance("publish", tmp_path / "results" / "results.jsonl", folder)
    assert done.code == 0 and "12 of 12 records" in done.out
    page = (folder / "README.md").read_text()
    assert "| qlib | 6 of 6 (100 %) |" in page and "| float-only | 0 of 6 (0 %) | 6 |" in page
    assert "* torch\n  * `op`: wrong by 3 quanta" in page
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    badges = {path.name for path in (folder / "badges").iterdir()}
    assert badges == {f"{name}{suffix}" for name in ("qlib", "float-only") for suffix in (".svg", ".json")}
    assert json.loads((folder / "badges" / "qlib.json").read_text())["message"] == "6 of 6 native"
    assert keys(folder / "results.jsonl.xz") == keys(tmp_path / "results" / "results.jsonl")
    assert conformance("report", folder / "results.jsonl.xz").code == 0
    assert (folder / "FINDINGS.md").read_text().startswith("# Findings in others")
