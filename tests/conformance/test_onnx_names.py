"""What an ONNX engine runs is named by what its graph says, and by nothing that it merely claims."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", minversion="1.20")
from onnx import TensorProto, helper  # noqa: E402

from conformance.backends.onnx_names import read, sequence  # noqa: E402

Node = tuple[str, str, str, str]


def graph(*nodes: Node, constants: tuple[tuple[str, list[int]], ...] = ()) -> Any:
    """A model of nodes ``(kind, inputs, outputs, documentation)``."""
    made = [helper.make_node(kind, i.split(), o.split(), doc_string=doc) for kind, i, o, doc in nodes]
    held = [helper.make_tensor(name, TensorProto.FLOAT, dims, [0.0] * prod(dims)) for name, dims in constants]
    return helper.make_model(helper.make_graph(made, "g", [], [], held))


CONV = graph(
    ("Conv", "x w b", "c", "aten::conv2d c"),
    ("Relu", "c", "r", "aten::relu r"),
    ("Identity", "r", "output_0", ""),
    constants=(("w", [4, 3, 3, 3]), ("b", [4])),
)
STORED = (("wq", [4, 3, 3, 3]), ("s", []), ("z", []))


def names(optimized: Any, source: Any = CONV) -> tuple[str, ...]:
    return sequence(read(optimized, source))


def test_a_fused_integer_kernel() -> None:
    ran = graph(
        ("QuantizeLinear", "x s z", "x_QuantizeLinear_Output", ""),
        ("Transpose", "x_QuantizeLinear_Output", "t", ""),
        ("QLinearConv", "t s z wq ws wz s z", "r_token_3", ""),
        ("Transpose", "r_token_3", "r_QuantizeLinear_Output", ""),
        ("DequantizeLinear", "r_QuantizeLinear_Output s z", "output_0", ""),
        constants=STORED,
    )
    assert names(ran) == (
        "quantized::quantize_per_tensor",
        "quantized::conv2d_relu",
        "quantized::dequantize_per_tensor",
    )


def test_a_relu_that_stays_is_not_taken_for_fused() -> None:
    ran = graph(
        ("QLinearConv", "xq s z wq ws wz s z", "c", ""),
        ("DequantizeLinear", "c s z", "c_DequantizeLinear_Output", ""),
        ("Relu", "c_DequantizeLinear_Output", "r", ""),
        constants=STORED,
    )
    assert names(ran) == ("quantized::conv2d", "quantized::dequantize_per_tensor", "aten::relu")


def test_float_between_quantize_and_dequantize_is_float() -> None:
    ran = graph(
        ("DequantizeLinear", "xq s z", "x_DequantizeLinear_Output", ""),
        ("DequantizeLinear", "wq ws wz", "w_DequantizeLinear_Output", ""),
        ("Conv", "x_DequantizeLinear_Output w_DequantizeLinear_Output b", "c", ""),
        ("Relu", "c", "output_0_QuantizeLinear_Input", ""),
        ("QuantizeLinear", "output_0_QuantizeLinear_Input s z", "output_0_QuantizeLinear_Output", ""),
        constants=STORED,
    )
    border = "quantized::dequantize_per_tensor"
    assert names(ran) == (border, "aten::conv2d", "aten::relu", "quantized::quantize_per_tensor")


def test_an_operator_in_float_that_makes_the_value_of_a_relu_left_out_after_it() -> None:
    assert names(graph(("Conv", "x w b", "r_QuantizeLinear_Input", ""))) == ("aten::conv2d",)


def test_moves_and_selections_are_quantized_where_they_get_integers() -> None:
    source = graph(("MaxPool", "x", "p", "aten::max_pool2d p"), ("Reshape", "p k", "f", "aten::flatten f"))
    on_integers = graph(("QuantizeLinear", "x s z", "q", ""), ("MaxPool", "q", "p", ""), ("Reshape", "p k", "f", ""))
    assert names(on_integers, source)[1:] == ("quantized::max_pool2d", "quantized::flatten")
    in_float = graph(("MaxPool", "x", "p", ""), ("Reshape", "p k", "f", ""))
    assert names(in_float, source) == ("aten::max_pool2d", "aten::flatten")


def test_integers_that_end_in_floats_are_dynamic() -> None:
    source = graph(("Gemm", "x w b", "y", "aten::linear linear"), constants=(("w", [5, 4]),))
    fused = graph(("DynamicQuantizeMatMul", "x wq ws", "y", ""), constants=(("wq", [4, 5]),))
    assert names(fused, source) == ("quantized::linear_dynamic",)
    apart = graph(
        ("DynamicQuantizeLinear", "x", "q s z", ""),
        ("MatMulInteger", "q wq z", "sums", ""),
        constants=(("wq", [4, 5]),),
    )
    assert names(apart, source) == ("quantized::choose_qparams", "quantized::linear_dynamic")


def test_what_the_engine_made_up_satisfies_nothing() -> None:
    assert names(graph(("Erf", "x", "mine", ""))) == ("unmapped:Erf",)


def test_renamed_values_are_paired_by_the_order_of_their_kind() -> None:
    ran = graph(
        ("QuantizeLinear", "x s z", "u8", ""),
        ("QLinearConv", "u8 s z wq ws wz s z", "u8_token_1", ""),
        ("Relu", "u8_token_1", "u8_token_2", ""),
        constants=STORED,
    )
    assert names(ran) == ("quantized::quantize_per_tensor", "quantized::conv2d", "aten::relu")


def test_several_operators_for_one_of_the_module_count_once_in_float() -> None:
    source = graph(("Sigmoid", "x", "g", "aten::silu silu"), ("Mul", "x g", "silu", "aten::silu silu"))
    assert names(source, source) == ("aten::silu",)
