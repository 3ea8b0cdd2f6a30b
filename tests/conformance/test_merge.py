from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from synthetic_records import make_records, make_run

from conformance.errors import UsageError
from conformance.merge import merge
from conformance.record import Declared, Record, Run
from conformance.report import junit
from conformance.shard import Shard
from conformance.store import Results

BACKENDS = ("qlib", "torchao")
RECORDS = tuple(replace(each, subject=replace(each.subject, fingerprint="f")) for each in make_records(60, BACKENDS))
CASES = {record.subject.case: "f" for record in RECORDS}
VERSIONS = {name: {"torch": "2.13.0"} for name in BACKENDS}
DECLARED = {name: Declared(versions=said) for name, said in VERSIONS.items()}
HEAD = replace(make_run(60, BACKENDS), cases=CASES, declared=DECLARED)


def shard(index: int, count: int = 3, run: Run = HEAD) -> tuple[Path, Results]:
    share = Shard(index, count)
    records = tuple(record for record in RECORDS if share.holds(record.subject.case))
    return Path(f"{index}.jsonl"), Results(replace(run, shard=str(share), planned=len(records)), records)


def key_of(record: Record) -> tuple[str, str]:
    return record.backend, record.subject.case


def changed(index: int, **changes: object) -> tuple[Path, Results]:
    path, found = shard(index)
    return path, replace(found, run=replace(found.run, **changes))


def test_shards_make_the_whole() -> None:
    merged = merge([shard(index) for index in (3, 1, 2)])
    assert merged.missing == ()
    assert sorted(merged.results.records, key=key_of) == sorted(RECORDS, key=key_of)
    run = merged.results.run
    assert (run.planned, run.shard, run.backends, dict(run.cases)) == (120, None, BACKENDS, CASES)


def test_a_missing_shard_and_a_missing_record_are_named() -> None:
    merged = merge([shard(1), shard(3)])
    assert set(merged.missing) == {(r.backend, r.subject.case) for r in shard(2)[1].records} != set()
    path, cut = shard(2)
    merged = merge([shard(1), (path, replace(cut, records=cut.records[1:])), shard(3)])
    assert merged.missing == ((cut.records[0].backend, cut.records[0].subject.case),)


def test_one_file_is_whole_by_itself() -> None:
    assert merge([(Path("a"), Results(HEAD, RECORDS))]).missing == ()


def test_a_shard_given_twice_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"expected each case once, found \d+ twice, such as .* in 1.jsonl and 1.jsonl"
    ):
        merge([shard(1), shard(2), shard(1)])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cases": {}}, "2.jsonl: holds no plan"),
        ({"cases": {**CASES, "new::case": "f"}}, r"cases that are new: 1 \(new::case\)"),
        ({"cases": {**CASES, next(iter(CASES)): "g"}}, "cases whose spec has changed: 1"),
        ({"cases": dict(list(CASES.items())[1:])}, "cases that are gone: 1"),
        (
            {"declared": {**DECLARED, "torchao": Declared({"torch": "2.14.0"})}},
            "backend torchao: torch 2.13.0, now 2.14.0",
        ),
        ({"environment": replace(HEAD.environment, packages={})}, "package: torch 2.13.0, now not there"),
        ({"environment": replace(HEAD.environment, python="3.12.0")}, "version: Python 3.11.9, now 3.12.0"),
    ],
)
def test_shards_of_something_else_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        merge([shard(1), changed(2, **changes), shard(3)])


def alone(backend: str, index: int | None = None) -> tuple[Path, Results]:
    """The results of one backend, whole or a third of them."""
    share = Shard(index, 3) if index else None
    own = [each for each in RECORDS if each.backend == backend and (share is None or share.holds(each.subject.case))]
    shown = str(share) if share else None
    run = replace(HEAD, backends=(backend,), declared={backend: DECLARED[backend]}, shard=shown, planned=len(own))
    return Path(f"{backend}.jsonl"), Results(run, tuple(own))


def test_backends_that_were_run_apart_make_one_run() -> None:
    merged = merge([alone("torchao", 1), alone("qlib"), alone("torchao", 3), alone("torchao", 2)])
    assert merged.missing == ()
    assert sorted(merged.results.records, key=key_of) == sorted(RECORDS, key=key_of)
    run = merged.results.run
    assert (run.planned, run.shard, run.backends) == (120, None, ("torchao", "qlib"))
    assert dict(run.declared) == DECLARED


def test_a_backend_that_lacks_a_shard_is_named() -> None:
    merged = merge([alone("qlib"), alone("torchao", 1), alone("torchao", 2)])
    assert {backend for backend, _ in merged.missing} == {"torchao"}
    assert len(merged.missing) == len(alone("torchao", 3)[1].records)


def test_other_machines_are_welcome_and_listed() -> None:
    other = replace(HEAD.environment, cpu="Other CPU")
    merged = merge(
        [shard(1), changed(2, environment=other, command="b", started="2025-01-01T00:00:00+00:00"), shard(3)]
    )
    run = merged.results.run
    assert run.environment.cpu == f"{HEAD.environment.cpu}; Other CPU"
    assert (run.command, run.started) == (f"{HEAD.command}; b", "2025-01-01T00:00:00+00:00")


def test_a_shard_and_the_whole_render_as_junit() -> None:
    for found in (shard(2)[1], merge([shard(1), shard(2), shard(3)]).results):
        root = ET.fromstring(junit.render(found.run, found.records))
        assert len(root.findall(".//testcase")) == len(found.records) == int(root.get("tests", ""))
        shards = {each.get("value") for each in root.findall(".//property[@name='shard']")}
        assert shards == ({"2/3"} if found.run.shard else set())
