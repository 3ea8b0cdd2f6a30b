from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from conformance.expect import Expect
from conformance.qconfigspec import QConfigModel, QSpecModel
from conformance.spec import Mode, ModeExpect, json_schema, narrow
from conformance.tensorspec import Draw, Dtype, TensorSpec, shape_of

SCHEMA = json_schema()
FILE = """
spec: 1
suite: conv
defaults: {calibration: 3, expect: {debug_equal: none}}
cases:
  - id: one
    why: because
    matrix: {n: [1, 2], act: [nn.ReLU()], include: [{n: 3}]}
    module:
      layers: {a: "nn.Conv${n}d(1, 1, 1)", b: [nn.ReLU(), "${act}"], c: {forward: text}}
      forward: text
    inputs: {x: {shape: [1, "${n}"], range: [-1, 1]}, y: {distribution: values, values: [[1]]}}
    parameters: {"*.bias": {distribution: constant, value: 0}}
    calibration: {batches: "${n}", inputs: {x: {range: [-2, 2]}}}
    modes: [static, "${n}"]
    qconfig: {default: default, modules: {a: null, b: {activation: null, weight: {dtype: int8, observer: min_max}}}}
    expect:
      ops: {static: {"quantized::conv${n}d": "${n}"}}
      order: [quantized::conv1d]
      accuracy: {dynamic: {sqnr_db: 30}}
      output: {dtype: float32}
  - {id: two, why: w, module: nn.ReLU(), inputs: {x: {shape: []}}, qconfig: default, timeout: 3,
     expect: {output: [{shape: [1]}]}}
  - {id: three, why: w, module: {python: "a.b:c"}, inputs: {x: {shape: []}}, calibration: 4,
     qconfig: {activation: null, weight: null}, expect: {ops: {quantized::relu: 1}}}
  - id: four
    why: w
    matrix: {t: [uint8]}
    graph:
      inputs: {x: {shape: [1], dtype: "${t}", scale: 1, zero_point: 3}, i: {shape: [1], dtype: int64}}
      constants: {w: {shape: [2, 3], dtype: uint8, scale: [1, 0.5], axis: 0, zero_point: [1, 2]}}
      compute: text
      output: [{dtype: uint8, scale: 1}, null]
    expect: {ops: {quantized::relu: 1}}
"""
TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip


def fits(value, schema):
    """As much of JSON Schema as ours uses."""
    schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    kind, number = schema.get("type"), isinstance(value, int | float) and not isinstance(value, bool)
    return all(
        (
            "anyOf" not in schema or any(fits(value, each) for each in schema["anyOf"]),
            "const" not in schema or value == schema["const"],
            "enum" not in schema or value in schema["enum"],
            kind is None or (isinstance(value, TYPES[kind]) and (kind not in {"integer", "number"} or number)),
            not isinstance(value, dict) or set(schema.get("required", ())) <= value.keys(),
            not isinstance(value, dict) or all(fits_key(key, value[key], schema) for key in value),
            not isinstance(value, list) or len(value) >= schema.get("minItems", 0),
            not isinstance(value, list) or all(fits(item, schema.get("items", {})) for item in value),
            not isinstance(value, str) or len(value) >= schema.get("minLength", 0),
            not isinstance(value, str) or re.search(schema.get("pattern", ""), value) is not None,
            not number or schema.get("minimum", value) <= value,
        )
    )


def fits_key(key, value, schema):
    known = schema.get("properties", {})
    if key in known:
        return fits(value, known[key])
    more = schema.get("additionalProperties", True)
    return more if isinstance(more, bool) else fits(value, more)


def test_the_json_schema_takes_a_file_as_it_is_written():
    assert fits(yaml.safe_load(FILE), SCHEMA)
    json.dumps(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("spec: 1", "spec: 2"), ("suite: conv", "suit: conv"), ("why: because", "wyh: a"), ("id: one", "id: ONE"),
        ("shape: [1,", "shapes: [1,"), ("modes: [static,", "modes: [statik,"), ("sqnr_db", "sqnr"),
        ("dtype: int8", "dtype: int7"), ("debug_equal: none", "debug_equal: 1"), ("    why: because\n", ""),
        ("calibration: 3", "calibration: a"), ("forward: text}", "backward: text}"), ("{static: {", "{statik: {"),
        ("timeout: 3", "timeout: x"), ("defaults: {", "defaults: {why: a, "), ("n: [1, 2]", "n: 1"),
        ('python: "a.b:c"', "python: a"), ("compute: text", "comptue: text"), ("scale: [1, 0.5]", "scale: a"),
        ("axis: 0", "axes: 0"),
    ],
)  # fmt: skip
def test_the_json_schema_refuses_mistakes(old, new):
    assert FILE.count(old) == 1
    assert not fits(yaml.safe_load(FILE.replace(old, new)), SCHEMA)


def test_every_property_of_a_case_is_described():
    for definition in ("Case", "TensorSpec", "Expect", "Accuracy", "QSpecModel", "GraphSpec", "GraphTensor"):
        schema = SCHEMA["$defs"][definition]
        for name, each in schema["properties"].items():
            assert "description" in json.dumps(each), (definition, name)


def test_a_qconfigs_short_forms():
    short = QConfigModel.model_validate({"activation": None, "weight": {"dtype": "int8", "observer": "min_max"}})
    assert (short.default.activation, short.default.weight.dtype) == (None, "int8")
    assert QConfigModel.model_validate("per_channel").default == "per_channel"
    rules = QConfigModel.model_validate({"modules": {"a.b": None}, "types": {"nn.Linear": "x"}})
    assert (rules.default, dict(rules.modules), dict(rules.types)) == ("default", {"a.b": None}, {"nn.Linear": "x"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"qmin": 5, "qmax": 5}, {"qmin": -1}, {"qmax": 256}, {"scale": 1.0, "zero_point": 0}, {"observer": "fixed"},
        {"symmetric": "yes"}, {"observer": "fixed", "scale": 0.0, "zero_point": 0},
        {"observer": "fixed", "scale": 1, "zero_point": 300}, {"axis": 9}, {"qmin": True},
    ],
)  # fmt: skip
def test_wrong_qspecs(wrong):
    with pytest.raises(ValidationError):
        QSpecModel.model_validate({"dtype": "uint8", "observer": "min_max"} | wrong)


def test_expectations_by_mode_and_for_all():
    expect = Expect.model_validate(
        {
            "ops": {"static": {"quantized::a": 1}},
            "debug_equal": "2 quanta",
            "output": {"dtype": "float32"},
            "absent": ["aten::b"],
        }
    )
    assert narrow(expect, Mode.STATIC).ops == {"quantized::a": 1}
    assert narrow(expect, Mode.QAT).ops == {}
    assert {narrow(expect, mode).debug_equal for mode in Mode} == {2.0}
    assert narrow(expect, Mode.QAT).output[0].dtype is Dtype.FLOAT32
    assert ModeExpect().debug_equal == 0.0
    assert narrow(Expect.model_validate({"debug_equal": {"static": "none"}}), Mode.STATIC).debug_equal is None
    assert narrow(Expect.model_validate({"debug_equal": {"static": "none"}}), Mode.QAT).debug_equal == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"accuracy": {"sqnr_db": 0}}, {"accuracy": {"max_abs": -1}}, {"ops": {"a::b": 1}, "absent": ["a::b"]},
        {"output": []}, {"output": [{}]}, {"order": ["a::b"], "absent": ["a::b"]}, {"debug_equal": 0},
        {"debug_equal": "-1 quanta"}, {"ops": {"a::b": True}}, {"ops": ["a::b"]}, {"ops": {"static": {}, "a::b": 1}},
        {"accuracy": {"sqnr_db": float("inf")}},
    ],
)  # fmt: skip
def test_wrong_expectations(wrong):
    with pytest.raises(ValidationError):
        Expect.model_validate(wrong)


def test_defaults_of_a_tensor_depend_on_its_type():
    ranges = {dtype: TensorSpec.model_validate({"shape": [2], "dtype": dtype}) for dtype in Dtype}
    assert ranges[Dtype.UINT8].range == ranges[Dtype.BOOL].range == (0, 1)
    assert ranges[Dtype.INT8].distribution == ranges[Dtype.BOOL].distribution == "integers"
    assert (ranges[Dtype.FLOAT32].range, ranges[Dtype.FLOAT32].distribution) == ((-1, 1), "uniform")


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"shape": [2**14, 2**13]}, {"shape": [1] * 9}, {"shape": [True]}, {"shape": [1.5]},
        {"shape": [2], "distribution": "constant"}, {"shape": [2], "distribution": "outliers"},
        {"shape": [2], "distribution": "outliers", "outliers": {"count": 3, "value": 9}},
        {"shape": [2], "dtype": "uint8", "range": [-1, 1]},
        {"shape": [2], "dtype": "int8", "distribution": "constant", "value": 0.5},
        {"shape": [3], "distribution": "values", "values": [1, 2]}, {"distribution": "values", "values": [[1], 2]},
        {"shape": [2], "range": [1, 1]}, {"shape": [2], "dtype": "float16", "range": [0, 1e6]},
        {"distribution": "values", "values": ["a"]}, {"shape": [2], "values": [1, 2]},
        {"shape": [2], "range": [0, float("nan")]}, {"shape": [2], "dtype": "int64", "distribution": "uniform"},
    ],
)  # fmt: skip
def test_wrong_tensors(wrong):
    with pytest.raises(ValidationError):
        TensorSpec.model_validate(wrong)


def test_a_draw_has_no_shape():
    with pytest.raises(ValidationError):
        Draw.model_validate({"shape": [2]})
    assert Draw.model_validate({"distribution": "normal", "range": [0, 6]}).range == (0, 6)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_the_shape_of_values_is_theirs(shape):
    values = 0.0
    for size in reversed(shape):
        values = [values] * size
    assert shape_of(values) == tuple(shape)
    assert TensorSpec.model_validate({"distribution": "values", "values": values}).shape == tuple(shape)


def test_specs_can_not_be_changed():
    expect = Expect.model_validate({"ops": {"a::b": 1}})
    with pytest.raises(ValidationError):
        expect.ops = {}
    with pytest.raises(TypeError):
        expect.ops[Mode.STATIC]["a::b"] = 2
