"""The kernels, and their registration as `torch.library` operators `qlib::NAME`, one for each row of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import torch

from qlib.kernels import (
    boundary,
    choice,
    computed,
    elementwise,
    embedding,
    matmul,
    per_token,
    recurrent,
    transposed,
    weight_only,
    weighted,
    windows,
)
from qlib.kernels.kernel import Call, Kernel, Runtime, Site, Source
from qlib.ops import OPS, Op

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "linear": weighted.LINEAR,
        "linear_dynamic": weighted.LINEAR_DYNAMIC,
        "linear_per_token": per_token.LINEAR_PER_TOKEN,
        "linear_weight_only": weight_only.LINEAR_WEIGHT_ONLY,
        "linear_fp16": weight_only.LINEAR_FP16,
        "conv": weighted.CONV,
        "conv_dynamic": weighted.CONV_DYNAMIC,
        "conv_transpose": transposed.CONV_TRANSPOSE,
        "conv_transpose_dynamic": transposed.CONV_TRANSPOSE_DYNAMIC,
        "recurrent_dynamic": recurrent.RECURRENT_DYNAMIC,
        "embedding": embedding.EMBEDDING,
        "embedding_bag": embedding.EMBEDDING_BAG,
        "matmul": matmul.MATMUL,
        "table": elementwise.TABLE,
        "channel_table": elementwise.CHANNEL_TABLE,
        "parametric_table": elementwise.PARAMETRIC_TABLE,
        "computed": computed.COMPUTED,
        "homogeneous": computed.HOMOGENEOUS,
        "masked": computed.MASKED,
        "combine": elementwise.COMBINE,
        "mul": elementwise.MUL,
        "div": elementwise.DIV,
        "choose": choice.CHOOSE,
        "fill": choice.FILL,
        "join": elementwise.JOIN,
        "monotone": windows.MONOTONE,
        "averaging": windows.AVERAGING,
        "move": windows.MOVE,
        "pad": windows.PAD,
    }
)


class Implementation(StrEnum):
    """Which implementation of the kernels runs."""

    REFERENCE = "reference"
    FAST = "fast"


_chosen = Implementation.FAST


@contextmanager
def implementation(name: Implementation | str) -> Iterator[None]:
    """Run the kernels by the given implementation inside a ``with`` block; the default is `fast`. Not per thread."""
    global _chosen  # noqa: PLW0603  (the dispatcher calls the kernels, so the choice can't be an argument)
    before, _chosen = _chosen, Implementation(name)
    try:
        yield
    finally:
        _chosen = before


def _switching(op: Op, kernel: Kernel) -> Callable[..., Any]:
    assert kernel.reference is not None and kernel.fast is not None
    by_name = {Implementation.REFERENCE: kernel.reference(op), Implementation.FAST: kernel.fast(op)}

    def run(*arguments: Any) -> Any:
        return by_name[_chosen](*arguments)

    return run


_LIBRARY = torch.library.Library("qlib", "DEF")


def _define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CPU")
    torch.library.register_fake(f"qlib::{name}", fake, lib=_LIBRARY)


def _register() -> None:
    for name, schema, run, fake in boundary.OPERATORS:
        _define(name, schema, run, fake)
    for op in OPS.values():
        kernel = KERNELS[op.kernel]
        if kernel.schema is not None and kernel.fake is not None:
            _define(op.short_name, kernel.schema(op), _switching(op, kernel), kernel.fake(op))


_register()


def call_at(site: Site) -> Call:
    """What the operator at `site` is replaced by."""
    op = site.match.op
    kernel = KERNELS[op.kernel]
    target = site.match.head.target if kernel.schema is None else getattr(torch.ops.qlib, op.short_name).default
    return Call(target, kernel.arguments(site))


__all__ = ["KERNELS", "Implementation", "Kernel", "Runtime", "Site", "Source", "call_at", "implementation"]
