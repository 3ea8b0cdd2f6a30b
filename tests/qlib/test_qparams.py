"""The description of a quantized tensor: defaults, ranges and contradictions."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qlib.qparams import RANGES, DType, QSpec, RangeFrom


@pytest.mark.parametrize(
    ("dtype", "bits", "signed"),
    [("uint8", 8, 0), ("int8", 8, 1), ("int16", 16, 1), ("int32", 32, 1), ("uint4", 4, 0), ("int4", 4, 1)],
)
def test_ranges_follow_from_bits_and_sign(dtype: str, bits: int, signed: int) -> None:
    low = -(2 ** (bits - 1)) * signed
    assert RANGES[DType(dtype)] == (low, low + 2**bits - 1)


def test_every_type_has_a_range() -> None:
    assert set(RANGES) == set(DType)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (QSpec(DType.INT8), (-128, 127)),
        (QSpec(DType.INT8, symmetric=True), (-127, 127)),
        (QSpec(DType.INT4, symmetric=True), (-7, 7)),
        (QSpec(DType.UINT8, symmetric=True), (0, 255)),
        (QSpec(DType.INT8, qmin=-128, symmetric=True), (-128, 127)),
        (QSpec(DType.UINT8, qmax=127), (0, 127)),
        (QSpec(DType.INT8, qmin=0), (0, 127)),
    ],
)
def test_range(spec: QSpec, expected: tuple[int, int]) -> None:
    assert spec.range == expected


@pytest.mark.parametrize(
    ("qmin", "qmax"),
    [(-1, 255), (0, 256), (5, 5), (7, 3)],
)
def test_a_range_that_does_not_fit_is_refused(qmin: int, qmax: int) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= qmin < qmax <= 255"):
        QSpec(DType.UINT8, qmin, qmax)


def test_a_scale_belongs_to_the_fixed_observer_only() -> None:
    with pytest.raises(ValueError, match="fixed"):
        QSpec(scale=0.5)
    with pytest.raises(ValueError, match="fixed"):
        QSpec(observer="fixed")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_is_positive_and_finite(scale: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        QSpec(observer="fixed", scale=scale)


@pytest.mark.parametrize("zero_point", [-1, 256])
def test_a_zero_point_lies_in_the_range(zero_point: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        QSpec(observer="fixed", scale=1.0, zero_point=zero_point)


def test_where_the_range_comes_from() -> None:
    assert QSpec().range_from is RangeFrom.CALIBRATION
    assert QSpec(observer="histogram").range_from is RangeFrom.CALIBRATION
    assert QSpec(observer="runtime").range_from is RangeFrom.RUNTIME
    assert QSpec(observer="fixed", scale=1.0).range_from is RangeFrom.FIXED


def test_tables_are_read_without_torch() -> None:
    program = "import sys, qlib.qparams, qlib.qconfig, qlib.ops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
