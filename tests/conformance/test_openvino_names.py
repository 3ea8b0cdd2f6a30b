"""What OpenVINO runs is named by its kernels' types and implementations; its package is not needed for that."""

from __future__ import annotations

from typing import Any

import pytest

onnx = pytest.importorskip("onnx", minversion="1.20")
from onnx import TensorProto, helper  # noqa: E402

from conformance.backends.onnx_source import source_of  # noqa: E402
from conformance.backends.openvino_names import Kernel, sequence  # noqa: E402

ENTER, LEAVE = "quantized::quantize_per_tensor", "quantized::dequantize_per_tensor"


def graph(*nodes: tuple[str, str, str, str], numbers: tuple[str, ...] = ()) -> Any:
    """A written model of nodes ``(kind, inputs, output, documentation)``."""
    made = [helper.make_node(kind, i.split(), [o], doc_string=doc, name=o) for kind, i, o, doc in nodes]
    held = [helper.make_tensor(name, TensorProto.FLOAT, [], [2.0]) for name in numbers]
    return source_of(helper.make_model(helper.make_graph(made, "g", [], [], held)))


def kernel(kind: str, implementation: str, layers: str, takes: str, gives: str) -> Kernel:
    return Kernel(kind, implementation, tuple(layers.split()), tuple(takes.split()), tuple(gives.split()))


CONV = graph(
    ("QuantizeLinear", "x s z", "xq", "qlib::quantize_per_tensor xq"),
    ("DequantizeLinear", "xq s z", "xd", "qlib::dequantize_per_tensor xd"),
    ("Conv", "xd w b", "c", "aten::conv2d c"),
    ("Relu", "c", "r", "aten::relu r"),
    ("QuantizeLinear", "r s z", "rq", "qlib::quantize_per_tensor rq"),
    ("DequantizeLinear", "rq s z", "rd", "qlib::dequantize_per_tensor rd"),
    ("Sigmoid", "rd", "g", "aten::sigmoid g"),
    ("Identity", "g", "output_0", ""),
)
ENTERS = kernel("Subgraph", "jit_avx512_f32", "xq", "f32", "u8")
RESULT = kernel("Output", "unknown_f32", "output_0/sink_port_0", "f32", "")
INTEGER_CONV = kernel("Convolution", "brgconv_avx512_I8", "c/WithoutBiases Multiply_4 c rq", "u8", "u8")


def test_integers_from_end_to_end() -> None:
    in_float = kernel("Subgraph", "jit_avx512_I8", "Convert_1 Subtract_2 rd g output_0", "u8", "f32")
    assert sequence([ENTERS, INTEGER_CONV, in_float, RESULT], CONV) == (
        ENTER,
        "quantized::conv2d_relu",
        "aten::sigmoid",
        LEAVE,
    )


def test_a_relu_that_has_a_kernel_of_its_own_is_not_taken_for_fused() -> None:
    conv = kernel("Convolution", "brgconv_avx512_I8", "c", "u8", "f32")
    relu = kernel("Eltwise", "jit_avx512_f32", "r", "f32", "f32")
    assert sequence([ENTERS, conv, relu], CONV) == (ENTER, "quantized::conv2d", LEAVE, "aten::relu")


def test_the_type_of_the_implementation_decides_not_that_of_the_weights() -> None:
    decompressing = kernel("FullyConnected", "brgemm_avx512_f32", "y", "f32", "f32")
    source = graph(("MatMul", "x w", "y", "aten::linear y"))
    assert sequence([decompressing], source) == ("aten::linear",)
    assert sequence([kernel("FullyConnected", "brgemm_avx512_amx_i8", "y", "u8", "u8")], source) == (
        "quantized::linear",
    )


def test_fake_quantization_in_float_is_no_border() -> None:
    fake = kernel("FakeQuantize", "jit_avx512_f32", "xq xd", "f32", "f32")
    conv = kernel("Convolution", "brgconv_avx512_f32", "c rq", "f32", "f32")
    assert sequence([fake, conv], CONV) == ("aten::conv2d",)


def test_elementwise_operators_count_where_they_get_and_give_integers() -> None:
    source = graph(("Add", "a b", "s", "aten::add s"), ("Mul", "s two", "m", "aten::mul m"), numbers=("two",))
    on_integers = kernel("Subgraph", "jit_avx512_I8", "s m", "u8 i8", "u8")
    assert sequence([on_integers], source) == ("quantized::add", "quantized::mul_scalar")
    half = kernel("Subgraph", "jit_avx512_I8", "s m", "u8 f32", "u8")
    assert sequence([half], source) == ("aten::add", "aten::mul")


def test_what_follows_a_product_in_its_kernel_is_computed_in_float() -> None:
    source = graph(("Conv", "x w", "c", "aten::conv2d c"), ("Sigmoid", "c", "g", "aten::sigmoid g"))
    fused = kernel("Convolution", "brgconv_avx512_I8", "c g", "u8", "f32")
    assert sequence([fused], source) == ("quantized::conv2d", "aten::sigmoid", LEAVE)


def test_several_layers_in_one_kernel_with_their_borders() -> None:
    source = graph(
        ("MatMul", "x w", "y", "aten::linear y"),
        ("MatMul", "y v", "z", "aten::linear z"),
    )
    layers = "xq y/WithoutBiases/DequantizationMultiply y z/DequantizationMultiply z"
    assert sequence([kernel("Subgraph", "jit_avx512_f32", layers, "f32", "f32")], source) == (
        ENTER,
        "quantized::linear",
        "quantized::linear",
        LEAVE,
    )


def test_an_operator_that_several_kernels_stand_for_counts_once_as_the_heaviest_says() -> None:
    source = graph(
        ("Reshape", "x n", "y_matrix", "aten::linear y"),
        ("Gemm", "y_matrix w", "y_product", "aten::linear y"),
        ("Reshape", "y_product n", "y", "aten::linear y"),
    )
    before = kernel("Reshape", "unknown_i8", "y_matrix", "u8", "u8")
    after = kernel("Reshape", "unknown_f32", "y", "f32", "f32")
    on_integers = kernel("FullyConnected", "brgemm_avx512_I8", "y_product", "u8", "u8")
    assert sequence([before, on_integers, after], source) == ("quantized::linear",)
    in_float = kernel("FullyConnected", "brgemm_avx512_f32", "y_product", "u8", "u8")
    assert sequence([before, in_float, after], source) == ("aten::linear",)


def test_of_two_kernels_as_heavy_one_in_float_makes_the_operator_float() -> None:
    source = graph(("Sigmoid", "x", "y_gate", "aten::silu y"), ("Mul", "x y_gate", "y", "aten::silu y"))
    gate = kernel("Eltwise", "jit_avx512_f32", "y_gate", "u8", "f32")
    product = kernel("Eltwise", "jit_avx512_I8", "y", "u8", "u8")
    assert sequence([product, gate], source) == ("aten::silu", LEAVE)


def test_moves_count_where_they_get_integers() -> None:
    source = graph(("Transpose", "x", "t", "aten::permute t"))
    assert sequence([kernel("Transpose", "unknown_I8", "t", "u8", "u8")], source) == ("quantized::permute",)
    assert sequence([kernel("Transpose", "unknown_f32", "t", "f32", "f32")], source) == ("aten::permute",)


def test_what_depends_on_constants_alone_and_changes_of_layout_are_no_operators() -> None:
    folded = kernel("Reshape", "unknown_f32", "Reshape_68", "", "f32")
    layout = kernel("Reorder", "jit_uni_I8", "", "u8", "u8")
    assert sequence([folded, layout], CONV) == ()


def test_what_the_engine_made_up_satisfies_nothing() -> None:
    assert sequence([kernel("MVN", "jit_avx512_f32", "MVN_7", "f32", "f32")], CONV) == ("unmapped:MVN",)


def test_a_place_where_the_tool_quantizes_is_not_the_operator_it_is_named_after() -> None:
    place = kernel("FakeQuantize", "jit_avx512_f32", "c/fq_output_0", "f32", "u8")
    assert sequence([place], CONV) == (ENTER,)
