"""Every kernel a second time, spelled out in operators that every consumer of ATen graphs knows.

    sums, products, look-ups     int64, by matmul, mul and index
    requantize                   acc.to(float64) * multiplier -> round -> + zero_point -> clamp -> to(dtype)
    quantize, dequantize         float32, where the graph meets floats; NaN is stored as the least integer

Three kinds of kernels compute in float64 here as they do themselves: functions without an integer formula
(normalisation, softmax), operators on floats whose weights alone are integers, and recurrent layers between their
products. And means hold integers in float64, because ATen has no kernels for integers: their sums are exact, and their
division is the scale of their requantization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import fx

from qlib.kernels import Site
from qlib.spelled import computed, elementwise, recurrent, selections, stored
from qlib.spelled.borders import BORDERS
from qlib.spelled.weighted import linear_sums, to_floats, to_integers
from qlib.spelled.windows import conv_sums, transposed_sums

# How each kernel of the operator table is spelled out; none is left out.
REWRITES: Mapping[str, Callable[[Site], fx.Node | tuple[fx.Node, ...]]] = MappingProxyType(
    {
        "linear": to_integers(linear_sums),
        "linear_dynamic": to_floats(linear_sums),
        "linear_per_token": to_floats(linear_sums),
        "linear_weight_only": stored.linear_weight_only,
        "linear_fp16": stored.linear_fp16,
        "conv": to_integers(conv_sums),
        "conv_dynamic": to_floats(conv_sums),
        "conv_transpose": to_integers(transposed_sums),
        "conv_transpose_dynamic": to_floats(transposed_sums),
        "recurrent_dynamic": recurrent.recurrent,
        "embedding": stored.embedding,
        "embedding_bag": stored.embedding_bag,
        "matmul": elementwise.product,
        "table": elementwise.table,
        "channel_table": elementwise.table,
        "parametric_table": elementwise.table,
        "computed": computed.computed,
        "homogeneous": computed.homogeneous,
        "masked": computed.computed,
        "combine": elementwise.combine,
        "mul": elementwise.product,
        "div": elementwise.quotient,
        "choose": elementwise.choose,
        "fill": elementwise.fill,
        "join": elementwise.join,
        "monotone": selections.selection,
        "averaging": computed.averaging,
        "move": computed.as_it_is,
        "pad": computed.as_it_is,
    }
)

__all__ = ["BORDERS", "REWRITES"]
