"""Changing the size of images and other signals; results lie in the range of the input and keep its parameters."""

from __future__ import annotations

from qlib.ops.op import Family, Op


def _resample(name: str, kernel: str, doc: str) -> Op:
    return Op(f"quantized::{name}", Family.SHARED, (f"aten::{name}",), kernel, doc, overload="vec")


OPS = (
    *(_resample(f"upsample_nearest{dim}d", "monotone", f"{dim}-dimensional nearest element") for dim in (1, 2, 3)),
    _resample("upsample_linear1d", "homogeneous", "1-dimensional linear interpolation"),
    _resample("upsample_bilinear2d", "homogeneous", "2-dimensional linear interpolation"),
    _resample("upsample_trilinear3d", "homogeneous", "3-dimensional linear interpolation"),
)
