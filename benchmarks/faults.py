"""Faults put into one kernel at a time, and how many bundled specs notice each.

    python benchmarks/faults.py [--capture trace]

A fault replaces one function of the bundled library for a whole run of the bundled specs. A spec notices where one of
its cases is not native. A fault that no spec notices is a hole in the specs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from qlib.kernels import boundary, choice, computed, elementwise, onednn, recurrent, transposed, weighted, windows
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
    "dynamic linear: bias missing": Fault(
        onednn, "linear_to_float", lambda run: lambda layer: run(_without_bias(layer))
    ),
    "dynamic linear: first channel's scale for all": Fault(
        onednn, "linear_to_float", lambda run: lambda layer: run(_first_scale(layer))
    ),
    "dynamic linear: zero point off by one": Fault(
        onednn, "linear_to_float", lambda run: lambda layer: run(_zero_point_plus_one(layer))
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
    "quantize: zero point off by one": Fault(
        boundary, "quantize", lambda run: lambda x, q: run(x, replace(q, zero_point=q.zero_point + 1))
    ),
    "dequantize: zero point off by one": Fault(
        boundary, "dequantize", lambda run: lambda x, q, *d: run(x, replace(q, zero_point=q.zero_point + 1), *d)
    ),
    "add, mul, cat, tables: round towards zero": Fault(elementwise, "requantize", _truncating),
    "add, mul, cat, tables: no saturation": Fault(elementwise, "requantize", _wrapping),
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
    "average pooling: round towards zero": Fault(windows, "requantize", _truncating),
    "average pooling: zero point missing": Fault(
        windows, "requantize", lambda run: lambda real, m, zero_point, *rest: run(real, m, 0, *rest)
    ),
}  # fmt: skip


def noticed(fault: Fault | None, captures: list[str]) -> tuple[set[str], set[str]]:
    """Run the bundled specs; the specs that notice, and all of them."""
    cases = [case for path in discover([bundled_specs()]) for case in expand(load(path, vocabulary()))]
    backend = open_backend("qlib")
    wrong, every = set(), set()
    if fault is None:
        patch: Any = mock.patch.object(onednn, "MOST_FORMS", onednn.MOST_FORMS)
    else:
        patch = mock.patch.object(fault.where, fault.name, fault.replacement(getattr(fault.where, fault.name)))
    with patch:
        for case in select(cases, captures=captures):
            name = f"{case.suite}::{case.spec_id}"
            every.add(name)
            if run_case(case, backend, "qlib").record.verdict is not Verdict.NATIVE:
                wrong.add(name)
    return wrong, every


def main() -> None:
    """Print how many specs notice each fault."""
    parser = argparse.ArgumentParser(description="Faults put into kernels, and the specs that notice them.")
    parser.add_argument("--capture", action="append", help="Only cases of this capture (default: trace).")
    captures = parser.parse_args().capture or ["trace"]
    healthy, every = noticed(None, captures)
    rows = [["none", f"{len(healthy)} of {len(every)}"]]
    for name, fault in FAULTS.items():
        wrong, _ = noticed(fault, captures)
        rows.append([name, f"{len(wrong - healthy)} of {len(every)}"])
    print(tabulate(rows, ["fault", "specs that notice"], tablefmt="github"))


if __name__ == "__main__":
    main()
