"""What a case shows of a backend's arithmetic comes into its record."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_specs import case_of

from conformance.backends import open_backend
from conformance.case import Case
from conformance.engine import run_case
from conformance.observation import Evidence
from conformance.properties import properties_of, said_of, scheme_of
from conformance.scheme import Scheme

ROWS = "{shape: [64, 12], distribution: outliers, range: [-0.5, 1], outliers: {count: 16, value: 8}}"


def linear(qconfig: str, mode: str = "dynamic") -> Case:
    return case_of(
        f"""
        module: nn.Linear(12, 8)
        modes: [{mode}]
        capture: [export]
        inputs: {{x: {ROWS}}}
        qconfig: {qconfig}
        expect: {{accuracy: {{sqnr_db: 20}}}}
        """
    )


def shown(case: Case, name: str = "qlib") -> dict[str, str]:
    return dict(run_case(case, open_backend(name), name).record.properties)


SCHEMES = {
    "default": "per_tensor_asymmetric",
    "int8": "per_tensor_asymmetric",
    "reduced_range": "per_tensor_asymmetric",
    "asymmetric_weight": "per_tensor_asymmetric",
    "int4_weight": "per_tensor_asymmetric",
    "symmetric": "per_tensor_symmetric",
    "int16": "per_tensor_symmetric",
    "per_token": "per_row_asymmetric",
    "per_token_symmetric": "per_row_symmetric",
    "weight_only_int8": "none",
    "weight_only_int4": "none",
}


@pytest.mark.parametrize("qconfig", SCHEMES)
@pytest.mark.parametrize("name", ["qlib", "qlib:reference"])
def test_the_bundled_library_has_the_scheme_that_its_qconfig_says(qconfig: str, name: str) -> None:
    assert shown(linear(qconfig), name) == {"activation_scheme": SCHEMES[qconfig]}


def test_only_a_dynamic_layer_has_a_scheme() -> None:
    assert shown(linear("default", "static")) == {}


def test_a_layer_in_float_has_none() -> None:
    assert shown(linear("default"), "float-only") == {"activation_scheme": "none"}


def evidence() -> Evidence:
    x, weight = torch.rand(64, 12), torch.rand(8, 12)
    y = (x @ weight.T,)
    return Evidence(y, y, y, None, (None,), {"aten::linear": 1}, {}, inputs_after_float=(x,), inputs_after=(x,))


def test_one_linear_layer_with_one_output_and_enough_rows_tells() -> None:
    seen = evidence()
    assert scheme_of(seen) == Scheme(("none",))
    assert properties_of(replace(seen, scheme=Scheme(("none",)))) == {"activation_scheme": "none"}
    x, y = seen.inputs_after_float[0], seen.outputs[0]
    for other in (
        replace(seen, float_ops={"aten::linear": 2}),
        replace(seen, float_ops={"aten::linear": 1, "aten::relu": 1}),
        replace(seen, inputs_after_float=(x, x)),
        replace(seen, outputs=(y, y)),
        replace(seen, outputs=()),
        replace(seen, outputs=(y.int(),)),
        replace(seen, inputs_after_float=(x[:20],), outputs=(y[:20],)),
        replace(seen, inputs_after_float=(x.int(),)),
    ):
        assert scheme_of(other) is None


@pytest.mark.parametrize("name", ["qlib", "onnxruntime"])
def test_what_is_declared_is_about_the_default_qconfig(name: str) -> None:
    about = open_backend(name).about()
    assert about.properties["activation_scheme"] == SCHEMES["default"]
    assert said_of(about, None) == about.properties
    assert said_of(about, linear("per_token").qconfig) == {}
