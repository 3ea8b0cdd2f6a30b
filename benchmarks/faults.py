"""Faults put into one kernel at a time, and how many bundled specs notice each.

    python benchmarks/faults.py [--capture trace] [-n 2]

A fault replaces one function of the bundled library for a whole run of the bundled specs. A spec notices where one of
its cases is not native. A fault that no spec notices is a hole in the specs.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor

from conformance.backends import open_backend
from conformance.backends.qlib import vocabulary
from conformance.case import expand, select
from conformance.engine import run_case
from conformance.load import discover, load
from conformance.places import bundled_specs
from conformance.record import Verdict
from qlib import arith
from qlib.kernels import (
    boundary,
    choice,
    computed,
    elementwise,
    matmul,
    onednn,
    per_token,
    recurrent,
    transposed,
    weight_only,
    weighted,
    windows,
)
from qlib.kernels.kernel import Result
from qlib.kernels.layer import Layer


@dataclass(frozen=True)
class Fault:
    """What is replaced, and by what; `replacement` gets the original."""

    where: Any
    name: str
    replacement: Callable[[Callable[..., Any]], Callable[..., Any]]


def _layer(change: Callable[[Layer], Layer]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A weighted kernel that is handed a changed layer."""
    return lambda run: lambda layer, result: run(change(layer), result)


def _truncating(run: Callable[..., Any]) -> Callable[..., Any]:
    """Requantization that rounds towards zero."""

    def requantize(real: Tensor, multiplier: Any, zero_point: int, *rest: Any) -> Tensor:
        return arith.saturate((real * multiplier).trunc() + zero_point, *rest)

    return requantize


def _wrapping(run: Callable[..., Any]) -> Callable[..., Any]:
    """Requantization that wraps around instead of saturating."""

    def requantize(real: Tensor, multiplier: Any, zero_point: int, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
        return (torch.round(real * multiplier) + zero_point).to(torch.int64).to(dtype)

    return requantize


def _exact_run(requantize: Callable[..., Tensor]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The oneDNN kernel with another requantization."""

    def replacement(run: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(layer: Layer, result: Result) -> Tensor:
            acc = weighted.accumulate(layer, weighted.float64_sum)
            if layer.weight.bias is not None:
                acc = acc + layer.along_channels(layer.weight.bias.double())
            multiplier = layer.scale * layer.along_channels(layer.weight.scale.double()) / result.scale
            return requantize(acc, multiplier, *result.arguments[1:])

        return faulty

    return replacement


def _first_scale(layer: Layer) -> Layer:
    scale = layer.weight.scale
    first = scale if scale.dim() == 0 else scale[:1].expand_as(scale).contiguous()
    return replace(layer, weight=replace(layer.weight, scale=first))


def _without_bias(layer: Layer) -> Layer:
    return replace(layer, weight=replace(layer.weight, bias=None))


def _zero_point_plus_one(layer: Layer) -> Layer:
    return replace(layer, zero_point=layer.zero_point + 1)


def _first_range(run: Callable[..., Any]) -> Callable[..., Any]:
    """Parameters at run time from the first tensor that was ever seen."""
    first: list[Any] = []

    def faulty(x: Tensor, spec: Any) -> Any:
        first.append(run(x, spec))
        return first[0]

    return faulty


def _first_row(run: Callable[..., Any]) -> Callable[..., Any]:
    """Parameters of rows that are those of the first row for all."""

    def faulty(x: Tensor, spec: Any) -> Any:
        rows = run(x, spec)
        first = [value.flatten()[:1].expand(value.shape) for value in (rows.scale, rows.zero_point)]
        return replace(rows, scale=first[0], zero_point=first[1])

    return faulty


def _shifted(run: Callable[..., Any]) -> Callable[..., Any]:
    """Conversion to or from integers with a zero point one too high."""
    return lambda x, q, *dtype: run(x, replace(q, zero_point=q.zero_point + 1), *dtype)


def _first_rows(run: Callable[..., Any]) -> Callable[..., Any]:
    """The chosen rows of a table with the scales of its first ones."""

    def rows(stored: Any, chosen: Tensor) -> Any:
        right = run(stored, chosen)
        first = stored.scale[:1].expand(right.scale.shape) if right.scale.dim() == 1 else right.scale
        return replace(right, scale=first)

    return rows


FAULTS: Mapping[str, Fault] = {
    "linear and conv: round towards zero": Fault(onednn, "run", _exact_run(_truncating(lambda: None))),
    "linear and conv: no saturation": Fault(onednn, "run", _exact_run(_wrapping(lambda: None))),
    "linear and conv: first channel's scale for all": Fault(onednn, "run", _layer(_first_scale)),
    "linear and conv: bias missing": Fault(onednn, "run", _layer(_without_bias)),
    "linear and conv: input zero point off by one": Fault(onednn, "run", _layer(_zero_point_plus_one)),
    "linear and conv: output zero point off by one": Fault(
        onednn,
        "run",
        lambda run: lambda layer, result: run(layer, replace(result, zero_point=result.zero_point - 1)),
    ),
    "dynamic linear and conv: bias missing": Fault(
        onednn, "run_to_float", lambda run: lambda layer: run(_without_bias(layer))
    ),
    "dynamic linear and conv: first channel's scale for all": Fault(
        onednn, "run_to_float", lambda run: lambda layer: run(_first_scale(layer))
    ),
    "dynamic linear and conv: zero point off by one": Fault(
        onednn, "run_to_float", lambda run: lambda layer: run(_zero_point_plus_one(layer))
    ),
    "quantize: round towards zero": Fault(
        boundary, "quantize", lambda run: lambda x, q: arith.saturate(
            (x / q.scale).trunc() + q.zero_point, q.qmin, q.qmax, arith.STORAGE[q.dtype]
        )
    ),
    "quantize: no saturation": Fault(
        boundary, "quantize", lambda run: lambda x, q: (
            (torch.round(x / q.scale) + q.zero_point).to(torch.int64).to(arith.STORAGE[q.dtype])
        )
    ),
    "quantize: zero point off by one": Fault(boundary, "quantize", _shifted),
    "dequantize: zero point off by one": Fault(boundary, "dequantize", _shifted),
    "add, mul, div, cat: round towards zero": Fault(elementwise, "requantize", _truncating),
    "add, mul, div, cat: no saturation": Fault(elementwise, "requantize", _wrapping),
    "matrix products: round towards zero": Fault(matmul, "requantize", _truncating),
    "matrix products: no saturation": Fault(matmul, "requantize", _wrapping),
    "what oneDNN does not compute: round towards zero": Fault(weighted, "requantize", _truncating),
    "what oneDNN does not compute: no saturation": Fault(weighted, "requantize", _wrapping),
    "what oneDNN does not compute: input zero point off by one": Fault(
        weighted, "accumulate", lambda run: lambda layer, summed: run(_zero_point_plus_one(layer), summed)
    ),
    "dynamic linear and conv: range of another tensor": Fault(weighted, "qparams_of_tensor", _first_range),
    "linear by rows: range of the first row for all": Fault(per_token, "qparams_of_rows", _first_row),
    "linear by rows: zero point off by one": Fault(per_token, "quantize", _shifted),
    "weights alone: zero point off by one": Fault(weight_only, "dequantize", _shifted),
    "weights alone: bias missing": Fault(weight_only, "_apply", lambda run: lambda x, w, bias: run(x, w, None)),
    "embedding: first row's scale for all": Fault(weight_only.Stored, "rows", _first_rows),
    "recurrent layers: zero point off by one": Fault(
        recurrent, "accumulate", lambda run: lambda layer, summed: run(_zero_point_plus_one(layer), summed)
    ),
    "recurrent layers: biases missing": Fault(
        recurrent, "_weights", lambda run: lambda ways, w, scale, zero_point, bias: run(ways, w, scale, zero_point, [])
    ),
    "recurrent layers: range of another tensor": Fault(recurrent, "qparams_of_tensor", _first_range),
    "where, masked_fill: round towards zero": Fault(choice, "requantize", _truncating),
    "where, masked_fill: no saturation": Fault(choice, "requantize", _wrapping),
    "norms, softmax, masks: round towards zero": Fault(computed, "requantize", _truncating),
    "transposed convolution by run-time range: zero point off by one": Fault(
        transposed,
        "quantize",
        lambda run: lambda x, q: run(x, replace(q, zero_point=(q.zero_point + 1).clamp(max=q.qmax))),
    ),
    "norms, softmax, masks: no saturation": Fault(computed, "requantize", _wrapping),
    "transposed convolution by run-time range: range of another tensor": Fault(
        transposed, "qparams_of_tensor", _first_range
    ),
    "average pooling: round towards zero": Fault(windows, "requantize", _truncating),
    "average pooling: zero point missing": Fault(
        windows, "requantize", lambda run: lambda real, m, zero_point, *rest: run(real, m, 0, *rest)
    ),
}  # fmt: skip


def noticed(captures: list[str], name: str) -> tuple[set[str], set[str]]:
    """Run the bundled specs with the fault of that name, or with none; the specs that notice, and all of them."""
    torch.set_num_threads(1)
    cases = [case for path in discover([bundled_specs()]) for case in expand(load(path, vocabulary()))]
    backend = open_backend("qlib")
    fault = FAULTS.get(name, Fault(onednn, "run", lambda run: run))
    wrong, every = set(), set()
    with mock.patch.object(fault.where, fault.name, fault.replacement(getattr(fault.where, fault.name))):
        for case in select(cases, captures=captures):
            spec = f"{case.suite}::{case.spec_id}"
            every.add(spec)
            if spec not in wrong and run_case(case, backend, "qlib").record.verdict is not Verdict.NATIVE:
                wrong.add(spec)
    return wrong, every


def main() -> None:
    """Print how many specs notice each fault."""
    parser = argparse.ArgumentParser(description="Faults put into kernels, and the specs that notice them.")
    parser.add_argument("--capture", action="append", help="Only cases of this capture (default: trace).")
    parser.add_argument("-n", type=int, default=1, help="How many processes.")
    given = parser.parse_args()
    names = ["none", *FAULTS]
    with ProcessPoolExecutor(given.n, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(partial(noticed, given.capture or ["trace"]), names))
    healthy, every = found[0]
    # A spec that fails without a fault notices nothing.
    counts = [len(healthy), *(len(wrong - healthy) for wrong, _ in found[1:])]
    rows = [[name, f"{count} of {len(every)}"] for name, count in zip(names, counts, strict=True)]
    print(tabulate(rows, ["fault", "specs that notice"], tablefmt="github"))


if __name__ == "__main__":
    main()
