"""Element by element: tables for operators of one tensor, short float formulas for operators of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from qlib.arith import requantize
from qlib.kernels.kernel import Implementation, Kernel, Site
from qlib.ops import Op

OPERANDS = "Tensor a, float a_scale, int a_zero_point, Tensor b, float b_scale, int b_zero_point"
RESULT = "float y_scale, int y_zero_point, int qmin, int qmax, ScalarType dtype"


def _inputs(site: Site) -> Tensor:
    """Every integer that the operand can hold, dequantized in float64, in the order of the storage type."""
    info = torch.iinfo(site.sources[0].dtype)
    stored = torch.arange(info.min, info.max + 1, dtype=torch.float64)
    return (stored - site.sources[0].zero_point) * site.sources[0].scale


def _quantized(site: Site, values: Tensor) -> Tensor:
    result = site.bounded_result
    return requantize(values / result.scale, 1.0, result.zero_point, result.qmin, result.qmax, result.dtype)


def _table_arguments(site: Site) -> tuple[object, ...]:
    table = _quantized(site, site.evaluate(_inputs(site)))
    return (site.sources[0].node, site.constant("table", table))


def _channel_table_arguments(site: Site) -> tuple[object, ...]:
    channels = site.match.head.meta["shape"][1]
    column = _inputs(site)
    values = site.evaluate(column.unsqueeze(1).expand(-1, channels))
    return (site.sources[0].node, site.constant("table", _quantized(site, values).t().contiguous()))


def _parametric_table_arguments(site: Site) -> tuple[object, ...]:
    """One table where all channels have the same parameter."""
    weight = site.tensor(site.match.head.args[1])
    return _table_arguments(site) if weight.numel() == 1 else _channel_table_arguments(site)


def look_up(x: Tensor, table: Tensor) -> Tensor:
    """``table[x - least]`` with the least integer of the storage type of `x`; same shape as `x`."""
    index = x.to(torch.int32)
    least = torch.iinfo(x.dtype).min
    index = index - least if least else index
    return table.index_select(0, index.flatten()).view(x.shape)


def look_up_by_channel(x: Tensor, table: Tensor) -> Tensor:
    """``table[c, x - least]`` where c is the index along dimension 1; `table` is (channels, integers)."""
    size = table.shape[1]
    offset = torch.arange(table.shape[0], dtype=torch.int32).mul_(size) - torch.iinfo(x.dtype).min
    index = x.to(torch.int32) + offset.view(-1, *[1] * (x.dim() - 2))
    return table.flatten().index_select(0, index.flatten()).view(x.shape)


def look_up_by_parameter(x: Tensor, table: Tensor) -> Tensor:
    """`look_up` by one table, or `look_up_by_channel` by one for each channel."""
    return look_up(x, table) if table.dim() == 1 else look_up_by_channel(x, table)


# Functions with ``f(k * a, k * b) = k * f(a, b)`` for k > 0, so that they can be taken in steps of the result.
_HOMOGENEOUS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "aten::add": torch.add,
        "aten::sub": torch.sub,
        "aten::maximum": torch.maximum,
        "aten::minimum": torch.minimum,
    }
)


def _combine(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    """``y = f((a - a_zero_point) * a_scale, (b - b_zero_point) * b_scale)`` with a homogeneous f, requantized."""

    def build(op: Op) -> Implementation:
        combine = _HOMOGENEOUS[op.chain[0]]

        def run(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, *rest):  # type: ignore[no-untyped-def]
            left = (a.to(dtype) - a_zero_point) * (a_scale / y_scale)
            right = (b.to(dtype) - b_zero_point) * (b_scale / y_scale)
            return requantize(combine(left, right), 1.0, *rest)

        return run

    return build


def _mul(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    """``y = (a - a_zero_point) * (b - b_zero_point) * a_scale * b_scale``, requantized."""

    def mul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, *rest):  # type: ignore[no-untyped-def]
        product = (a.to(dtype) - a_zero_point) * (b.to(dtype) - b_zero_point)
        return requantize(product, a_scale * b_scale / y_scale, *rest)

    return lambda op: mul


def _div(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    """``y = (a - a_zero_point) / (b - b_zero_point) * (a_scale / b_scale)``, requantized."""

    def div(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, *rest):  # type: ignore[no-untyped-def]
        quotient = (a.to(dtype) - a_zero_point) / (b.to(dtype) - b_zero_point)
        return requantize(quotient, a_scale / b_scale / y_scale, *rest)

    return lambda op: div


def _binary_arguments(site: Site) -> tuple[object, ...]:
    a, b = site.sources
    return (a.node, a.scale, a.zero_point, b.node, b.scale, b.zero_point, *site.bounded_result.arguments)


def _join(dtype: torch.dtype) -> Callable[[Op], Implementation]:
    """Requantize each tensor to the result's parameters, then concatenate or stack."""

    def build(op: Op) -> Implementation:
        join = {"aten::cat": torch.cat, "aten::stack": torch.stack}[op.chain[0]]

        def run(  # type: ignore[no-untyped-def]
            tensors: Sequence[Tensor],
            scales: Sequence[float],
            zero_points: Sequence[int],
            dim: int,
            y_scale: float,
            *rest,
        ):
            pieces = [
                requantize(x.to(dtype) - zero_point, scale / y_scale, *rest)
                for x, scale, zero_point in zip(tensors, scales, zero_points, strict=True)
            ]
            return join(pieces, dim)

        return run

    return build


def _join_arguments(site: Site) -> tuple[object, ...]:
    sources = site.sources
    dim = site.match.head.args[1] if len(site.match.head.args) > 1 else 0
    return (
        [s.node for s in sources],
        [s.scale for s in sources],
        [s.zero_point for s in sources],
        dim,
        *site.bounded_result.arguments,
    )


def _same_shape(op: Op) -> Implementation:
    return lambda x, table: x.new_empty(x.shape, dtype=table.dtype)


def _broadcast_shape(op: Op) -> Implementation:
    def fake(a, a_scale, a_zero_point, b, *rest):  # type: ignore[no-untyped-def]
        return (a.to(torch.float32) + b.to(torch.float32)).to(rest[-1])

    return fake


def _joined_shape(op: Op) -> Implementation:
    join = {"aten::cat": torch.cat, "aten::stack": torch.stack}[op.chain[0]]
    return lambda tensors, scales, zero_points, dim, *rest: join(list(tensors), dim).to(rest[-1])


TABLE = Kernel(
    "a table with one entry for each stored integer",
    _table_arguments,
    lambda op: "(Tensor x, Tensor table) -> Tensor",
    lambda op: look_up,
    lambda op: look_up,
    _same_shape,
)
CHANNEL_TABLE = Kernel(
    "a table for each channel",
    _channel_table_arguments,
    lambda op: "(Tensor x, Tensor table) -> Tensor",
    lambda op: look_up_by_channel,
    lambda op: look_up_by_channel,
    _same_shape,
)
PARAMETRIC_TABLE = Kernel(
    "a table, or one for each channel where their parameters differ",
    _parametric_table_arguments,
    lambda op: "(Tensor x, Tensor table) -> Tensor",
    lambda op: look_up_by_parameter,
    lambda op: look_up_by_parameter,
    _same_shape,
)
COMBINE = Kernel(
    "sum, difference or extremum of two quantized tensors",
    _binary_arguments,
    lambda op: f"({OPERANDS}, {RESULT}) -> Tensor",
    _combine(torch.float64),
    _combine(torch.float32),
    _broadcast_shape,
)
MUL = Kernel(
    "product of two quantized tensors",
    _binary_arguments,
    lambda op: f"({OPERANDS}, {RESULT}) -> Tensor",
    _mul(torch.float64),
    _mul(torch.float32),
    _broadcast_shape,
)
DIV = Kernel(
    "quotient of two quantized tensors",
    _binary_arguments,
    lambda op: f"({OPERANDS}, {RESULT}) -> Tensor",
    _div(torch.float64),
    _div(torch.float32),
    _broadcast_shape,
)
JOIN = Kernel(
    "tensors requantized to one scale and put together",
    _join_arguments,
    lambda op: f"(Tensor[] tensors, float[] scales, int[] zero_points, int dim, {RESULT}) -> Tensor",
    _join(torch.float64),
    _join(torch.float32),
    _joined_shape,
)
