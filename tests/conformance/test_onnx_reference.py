"""Given graphs on the engines that run ONNX as it stands: the reference evaluator, and ONNX Runtime."""

from __future__ import annotations

import pytest
import torch
from small_specs import cases_of

from conformance.backends import open_backend
from conformance.backends.onnx_source import feeds
from conformance.engine import run_case
from conformance.errors import UsageError
from conformance.record import Record, Verdict

SPECS = """\
spec: 1
suite: engine
defaults: {inputs: {x: {shape: [1, 4, 8, 8]}}, modes: [numerics]}
cases:
  - id: conv
    why: a border, two kernels, a border
    module: ["nn.Conv2d(4, 8, 3, padding=1)", nn.ReLU(), "nn.Conv2d(8, 4, 3)"]
    expect: {ops: {quantized::conv2d_relu: 1, quantized::conv2d: 1, quantized::quantize_per_tensor: 1}, debug_equal: 0 quanta}
"""


def run(name: str) -> Record:
    pytest.importorskip("onnx", minversion="1.20")
    return run_case(cases_of(SPECS)[0], open_backend(name), name).record


def test_the_reference_computes_in_float_between_the_borders() -> None:
    record = run("onnx-reference")
    assert record.verdict is Verdict.FALLBACK, record.findings
    assert record.executed_ops["aten::conv2d"] == 2 and record.executed_ops["aten::relu"] == 1
    assert record.measures.wrong == 0


def test_the_runtime_fuses_a_given_graph_into_integer_kernels() -> None:
    pytest.importorskip("onnxruntime")
    record = run("onnxruntime")
    assert record.verdict is Verdict.NATIVE, record.findings
    assert record.native_ops["QLinearConv"] == 2


def test_it_quantizes_nothing_itself() -> None:
    assert open_backend("onnx-reference").about().modes == {"numerics"}
    with pytest.raises(UsageError, match="has no targets, found 'some': leave out the colon"):
        open_backend("onnx-reference:some")


def test_an_input_without_dimensions_stays_one() -> None:
    onnx = pytest.importorskip("onnx", minversion="1.20")
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "n")]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", inputs, []))
    given = feeds(model, [torch.ones(3, 2).t(), torch.tensor(2.0)])
    assert given["n"].shape == () and given["x"].shape == (2, 3) and given["x"].flags.c_contiguous
