from __future__ import annotations

import functools
from pathlib import Path

import pytest
from small_specs import written

from conformance.backends import BUILTIN, Process, Tier, open_backend, process_of
from conformance.backends.qlib import vocabulary
from conformance.case import Case, expand
from conformance.engine import run_case
from conformance.load import discover, load
from conformance.places import bundled_specs
from conformance.pool import Job, run_jobs
from conformance.record import Outcome, Record, Verdict

IN_PROCESS = {
    "qlib": Verdict.NATIVE,
    "qlib:reference": Verdict.NATIVE,
    "always-wrong": Verdict.WRONG,
    "off-by-one": Verdict.WRONG,
    "float-only": Verdict.FALLBACK,
    "claims-everything": Verdict.FALLBACK,
    "undeclared-refusal": Verdict.WRONG,
    "first-call-only": Verdict.WRONG,
    **{f"bad-output:{target}": Verdict.WRONG for target in BUILTIN["bad-output"].targets},
}
OF_THEIR_OWN = {"crashes": Verdict.CRASH, "hangs": Verdict.TIMEOUT}
# What a backend says of itself, beside what its results show.
OF_THEMSELVES = {"declares-another-scheme": ("per_row_symmetric", "per_tensor_asymmetric")}
# The check by which each lie is found out.
GIVEN_AWAY_BY = {
    "always-wrong": "debug_equal",
    "off-by-one": "debug_equal",
    "float-only": "ops",
    "claims-everything": "really_ran",
    "first-call-only": "repeatable",
    **{f"bad-output:{target}": "structure" for target in BUILTIN["bad-output"].targets if target != "nan"},
    "bad-output:nan": "accuracy",
}


@functools.cache
def telling_cases() -> tuple[Case, ...]:
    """Of each bundled file the first, middle and last case a mode that demand integer operators and bound the noise."""
    found: dict[tuple[str, str], list[Case]] = {}
    for path in discover([bundled_specs()]):
        for case in expand(load(path, vocabulary())):
            bounded = case.expect.accuracy is not None and case.expect.accuracy.sqnr_db is not None
            integers = any(count for name, count in case.expect.ops.items() if name.startswith("quantized::"))
            if bounded and case.expect.accuracy.max_quanta is None and integers:
                found.setdefault((case.suite, str(case.mode)), []).append(case)
    picked = ((cases[0], cases[len(cases) // 2], cases[-1]) for cases in found.values())
    return tuple({case.id: case for cases in picked for case in cases}.values())


def failed_checks(record: Record) -> set[str]:
    return {finding.check for finding in record.findings if finding.outcome is Outcome.FAILED}


def test_every_miniature_has_its_verdict_here() -> None:
    miniatures = {name for name, entry in BUILTIN.items() if entry.tier is Tier.MINIATURE}
    here = {name.partition(":")[0] for name in [*IN_PROCESS, *OF_THEIR_OWN, *OF_THEMSELVES]}
    assert here | {"bad-process", "bad-about", "too-much"} == {*miniatures, "qlib"}, "the last are in test_misbehaving"


def test_the_cases_that_tell_are_many_and_of_both_modes() -> None:
    cases = telling_cases()
    assert len(cases) >= 20
    assert {str(case.mode) for case in cases} >= {"static", "dynamic"}
    assert {str(case.capture) for case in cases} >= {"export", "trace"}


@pytest.mark.parametrize("name", IN_PROCESS)
def test_each_gets_exactly_its_verdict(name: str) -> None:
    backend = open_backend(name)
    found = {case.id: run_case(case, backend, name).record for case in telling_cases()}
    assert {case: str(record.verdict) for case, record in found.items()} == dict.fromkeys(found, str(IN_PROCESS[name]))
    if name in GIVEN_AWAY_BY:
        assert all(GIVEN_AWAY_BY[name] in failed_checks(record) for record in found.values())


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_each_case_of_theirs_is_a_record_of_its_own(name: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    cases = [case for case in expand(load(path, vocabulary())) if case.spec_id == "linear"]
    assert [str(case.mode) for case in cases] == ["static", "dynamic"]
    assert process_of(name) is Process.OWN
    records = list(run_jobs([Job(case, name) for case in cases], workers=1, seconds=16.0 if name == "hangs" else 60.0))
    assert [record.verdict for record in records] == [OF_THEIR_OWN[name]] * 2
    assert [record.subject.case for record in records] == [case.id for case in cases]
    assert [record.stage for record in records] == ["run"] * 2
    assert all(("SIGSEGV" if name == "crashes" else "no answer within 8 s of") in record.error for record in records)


def test_a_refusal_says_that_it_was_not_declared() -> None:
    case = telling_cases()[0]
    record = run_case(case, open_backend("undeclared-refusal"), "undeclared-refusal").record
    assert record.error == "refused without having declared it: this operator is not implemented"
    assert record.stage == "lower"


def scheme_cases(spec: str) -> list[Case]:
    """The first case of each combination of a spec whose input tells the scheme that it is quantized by."""
    cases = expand(load(bundled_specs() / "linear_dynamic.qspec.yaml", vocabulary()))
    return [case for case in cases if case.spec_id == spec and case.capture == "export"]


@pytest.mark.parametrize("name", OF_THEMSELVES)
def test_what_a_backend_says_of_itself_is_held_against_what_it_shows(name: str) -> None:
    said, shown = OF_THEMSELVES[name]
    for case in scheme_cases("scheme"):
        record = run_case(case, open_backend(name), name).record
        assert record.verdict is Verdict.FALLBACK and failed_checks(record) == {"declared"}
        assert record.properties["activation_scheme"] == shown != said
        finding = next(finding for finding in record.findings if finding.check == "declared")
        assert finding.expected == f"activation_scheme {said} as declared"


@pytest.mark.parametrize("name", OF_THEMSELVES)
def test_a_qconfig_that_the_declaration_is_not_about_is_no_contradiction(name: str) -> None:
    for case in scheme_cases("scheme_by_qconfig"):
        record = run_case(case, open_backend(name), name).record
        assert record.verdict is Verdict.NATIVE and record.properties["activation_scheme"]
        assert "declared" not in {finding.check for finding in record.findings}
