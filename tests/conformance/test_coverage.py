from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic_records import make_record, make_subject

from conformance.record import Declared, Record, Verdict
from conformance.report.coverage import (
    SEVERAL,
    Capability,
    Column,
    Lack,
    Property,
    asked,
    capabilities,
    coverage,
    lacks,
    operators,
    properties,
)
from conformance.report.disagreement import disagree
from conformance.report.rows import rows

STATIC = Column("static", "uint8 × int8", "per channel")
DYNAMIC = Column("dynamic", "uint8 × int8", "per channel")
TENSOR = Column("static", "uint8 × int8", "per tensor")


def asking(operator: str, column: Column, verdict: Verdict = Verdict.NATIVE, backend: str = "a") -> Record:
    subject = replace(make_subject(0), mode=column.mode, dtype=column.dtype, granularity=column.granularity)
    ops = {f"quantized::{operator}": 1, "quantized::quantize_per_tensor": 1, "aten::relu": 1}
    return replace(make_record(subject, backend, verdict), expected_ops=ops, executed_ops=ops, properties={})


def test_operators_are_the_quantized_ones_that_occur_without_borders_and_mode() -> None:
    counts = {
        "quantized::linear_dynamic": 1,
        "quantized::linear": 2,
        "quantized::relu": 0,
        "quantized::dequantize_per_tensor": 1,
        "aten::linear": 1,
    }
    assert operators(counts) == ["linear"]


def test_cells_count_what_is_native_of_what_is_scored() -> None:
    records = [
        asking("linear", STATIC),
        asking("linear", STATIC, Verdict.WRONG),
        asking("linear", STATIC, Verdict.UNSUPPORTED),
        asking("linear", STATIC, Verdict.ERROR),
        asking("linear_dynamic", DYNAMIC),
        asking("conv", TENSOR, Verdict.FALLBACK),
        asking("conv", STATIC, backend="b"),
    ]
    found = coverage([record for record in records if record.backend == "a"], asked(records))
    assert found.columns == (DYNAMIC, STATIC, TENSOR)
    assert found.rows == (("conv", (None, None, (0, 1, 0))), ("linear", ((1, 1, 0), (1, 3, 1), None)))
    assert found.never_asked() == [
        "dynamic · uint8 × int8 · per channel: conv",
        "static · uint8 × int8 · per channel: conv",
        "static · uint8 × int8 · per tensor: linear",
    ]
    assert found.never_native() == ["static · uint8 × int8 · per tensor: conv"]


def test_every_scored_record_that_asks_for_an_operator_is_in_one_cell_of_it() -> None:
    verdicts = list(Verdict)
    records = [asking("linear", (STATIC, DYNAMIC)[n % 2], verdicts[n % 8]) for n in range(40)]
    ((_, cells),) = coverage(records, asked(records)).rows
    assert sum(cell.scored for cell in cells if cell) == sum(r.verdict is not Verdict.ERROR for r in records)
    assert sum(cell.native for cell in cells if cell) == sum(r.verdict is Verdict.NATIVE for r in records)


def test_capabilities_set_what_is_declared_beside_what_is_shown() -> None:
    said = Declared(modes=("static", "qat"), captures=("export",))
    lies = [
        asking("linear", STATIC, Verdict.WRONG),
        asking("linear", DYNAMIC),
        asking("linear", DYNAMIC, Verdict.ERROR),
    ]
    found = capabilities(said, lies)
    assert found[:3] == [
        Capability("mode", "dynamic", False, 1, 1),
        Capability("mode", "qat", True, 0, 0),
        Capability("mode", "static", True, 0, 1),
    ]
    verdicts = ["native though not declared", "no case", "declared, and never native", "as declared"]
    assert [each.verdict for each in found] == verdicts


def test_a_declared_lack_that_ran_all_the_same_is_counted() -> None:
    said = Declared(lacks=("quantized::conv", "the observer fixed"))
    refused = replace(
        asking("linear", STATIC, Verdict.UNSUPPORTED), error="can't have the observer fixed", executed_ops={}
    )
    records = [asking("conv", STATIC), refused, replace(asking("conv", STATIC, Verdict.UNSUPPORTED), executed_ops={})]
    assert lacks(said, records) == [Lack("quantized::conv", 1, 1), Lack("the observer fixed", 1, 0)]


def test_properties_are_told_by_the_operator_that_ran() -> None:
    one = replace(asking("linear", STATIC), properties={"rounding": "half_even"})
    other = replace(one, properties={"rounding": "half_up"})
    both = replace(one, executed_ops={"quantized::linear": 1, "quantized::relu": 1})
    said = Declared(properties={"rounding": "half_even", "activation_scheme": "per_token"})
    found = properties(said, [one, one, other, both])
    assert [each.contradicted for each in found] == [False, True, False]
    assert found == [
        Property("activation_scheme", "none", "per_token", {}),
        Property("rounding", "linear", "half_even", {"half_even": 2, "half_up": 1}),
        Property("rounding", SEVERAL, "half_even", {"half_even": 1}),
    ]


def with_rounding(*rules: str) -> list[Record]:
    return [
        replace(asking("linear", STATIC, backend=str(n)), properties={"rounding": rule}) for n, rule in enumerate(rules)
    ]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], False),
        ([asking("linear", STATIC), asking("linear", STATIC, Verdict.FALLBACK)], True),
        ([asking("linear", STATIC, Verdict.WRONG), asking("linear", STATIC, Verdict.CRASH)], True),
        # What was not asked contradicts nothing.
        ([asking("linear", STATIC, Verdict.UNSUPPORTED), asking("linear", STATIC, Verdict.ERROR)], False),
        (with_rounding("half_even", "half_up"), True),
        (with_rounding("half_even or half_up", "half_up", "undecided"), False),
        (with_rounding("half_even or half_up", "half_up or half_away", "half_even or half_away"), True),
        (with_rounding("half_even", "none of them"), True),
    ],
)
def test_backends_disagree_in_verdict_or_in_rounding(records: list[Record], expected: bool) -> None:
    backends = [replace(record, backend=str(place)) for place, record in enumerate(records)]
    # Without any record there is no row either.
    assert any(disagree(row) for row in rows(backends)) is expected
