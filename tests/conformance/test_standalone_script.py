from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from small_specs import LINEAR, case_of, cases_of
from torch.utils import _pytree as pytree

from conformance.case import Case
from conformance.command import cases_of as bundled_cases
from conformance.facets import facets
from conformance.inputs import calibration_of, inputs_of
from conformance.modules import build
from conformance.qconfigspec import QConfigModel
from conformance.script import script
from conformance.tensorspec import Dtype, TensorQParams


def ran(text: str) -> dict[str, Any]:
    """The names that a script has made before it comes to the backend."""
    names: dict[str, Any] = {}
    exec(compile(text.partition("# On a backend")[0], "<case.py>", "exec"), names)
    return names


def equal(one: object, other: object) -> bool:
    left, right = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(left, right, strict=True)
    )


def one_of_each(cases: Sequence[Case]) -> list[Case]:
    """The first case of each spec: modes, captures and most matrix values change only the last section."""
    found: dict[tuple[str, str], Case] = {}
    for case in cases:
        found.setdefault((case.suite, case.spec_id), case)
    return list(found.values())


def test_scripts_of_the_bundled_specs_make_the_very_modules_and_tensors() -> None:
    cases = one_of_each(bundled_cases(()))
    assert len(cases) > 100
    for case in cases:
        names, module, inputs = ran(script(case, "qlib")), build(case), inputs_of(case)
        state, expected = names["module"].state_dict(), module.state_dict()
        assert list(state) == list(expected), case.id
        assert equal(list(state.values()), list(expected.values())), case.id
        assert equal(names["inputs"], inputs), case.id
        assert equal(names["calibration"], list(calibration_of(case, inputs))), case.id
        with torch.no_grad():
            shown = names["module"](*(x.clone() for x in names["inputs"]))
            assert equal(shown, module(*(x.clone() for x in inputs))), case.id


DRAWS = {
    "uniform": "{shape: [3, 4], range: [-3, 0.1]}",
    "normal": "{shape: [3, 4], distribution: normal, range: [0, 5]}",
    "integers": "{shape: [3, 4], distribution: integers, range: [-3, 7]}",
    "constant": "{shape: [3, 4], distribution: constant, value: 0.1}",
    "outliers": "{shape: [3, 4], distribution: outliers, outliers: {count: 2, value: 90}}",
    "values": "{shape: [1, 4], distribution: values, values: [[1, 2.5, -3, 0.1]]}",
}


@pytest.mark.parametrize("name", DRAWS)
def test_every_distribution_of_inputs_and_weights_is_drawn_alike(name: str) -> None:
    weight = re.sub(r"shape: \[., 4\], ", "", DRAWS[name])
    case = case_of(f"""
    module: nn.Linear(4, 5)
    inputs: {{x: {DRAWS[name]}}}
    parameters: {{weight: {weight}}}
    calibration: {{batches: 3, inputs: {{x: {{distribution: uniform, range: [-2, 2]}}}}}}
    capture: [export]
    expect: {{ops: {{quantized::linear: 1}}}}
""")
    names = ran(script(case, "qlib"))
    assert equal(names["module"].weight, build(case).weight)
    assert equal(names["inputs"], inputs_of(case))
    assert equal(names["calibration"], list(calibration_of(case, inputs_of(case))))


def test_a_script_runs_alone_and_says_what_ran() -> None:
    text = script(cases_of(LINEAR)[0], "qlib")
    done = subprocess.run([sys.executable, "-"], input=text, capture_output=True, text=True, check=True)
    assert "float: tensor(" in done.stdout and "quantized: tensor(" in done.stdout
    assert "operators: quantized::quantize_per_tensor, quantized::linear_relu" in done.stdout


def test_the_qconfig_of_a_script_is_that_of_the_case() -> None:
    cases = [case for case in one_of_each(bundled_cases(())) if case.qconfig is not None]
    assert cases
    for case in cases:
        line = script(case, "qlib").partition("\nwritten = ")[2].partition("\nqconfig = ")[0]
        assert QConfigModel.model_validate(eval(line)) == case.qconfig


GRAPH = """
    graph:
      inputs: {x: {shape: [4, 6], dtype: uint8, range: [0, 255], scale: 0.3, zero_point: 7}}
      constants:
        weight: {shape: [3, 6], dtype: int8, scale: [0.1, 0.2, 0.7], axis: 0}
        bias: {shape: [3], dtype: int32, range: [-500, 500]}
      compute: F.linear(x, weight, bias)
      output: {dtype: uint8, scale: 4, zero_point: 3}
    expect: {ops: {quantized::linear: 1}}
"""


def test_a_graph_that_is_written_out_keeps_its_integers() -> None:
    case = case_of(GRAPH)
    text = script(case, "qlib")
    names, module = ran(text), build(case)
    assert equal(list(names["module"].state_dict().values()), list(module.state_dict().values()))
    assert equal(names["inputs"], inputs_of(case))
    assert equal(names["calibration"], list(calibration_of(case, inputs_of(case))))
    line = text.partition("\nqparams = ")[2].partition("\ntask = ")[0]
    assert eval(line, {"TensorQParams": TensorQParams, "Dtype": Dtype}) == dict(case.qparams)
    exec(compile(text, "<case.py>", "exec"), names)
    assert "quantized::linear" in names["quantized"].final.ops
    assert facets(case) == ("uint8 × int8", "per channel")


def test_up_to_the_backend_a_script_needs_torch_alone() -> None:
    text = script(cases_of(LINEAR)[0], "qlib").partition("# On a backend")[0]
    assert "conformance" not in text.partition("import hashlib")[2]
    assert "qlib" not in text
