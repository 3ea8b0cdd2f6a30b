from __future__ import annotations

from dataclasses import replace

import pytest
from small_specs import LINEAR, cases_of

from conformance.facets import FLOAT, PRESETS, Facets, facets
from conformance.qconfigspec import QConfigModel
from conformance.record import subject_of
from qlib.qconfig import PRESETS as BUNDLED
from qlib.qconfig import QConfig
from qlib.qparams import QSpec


def dtype_of(spec: QSpec | None) -> str:
    return "float" if spec is None else str(spec.dtype)


def granularity_of(qconfig: QConfig) -> str:
    activation, weight = qconfig.activation, qconfig.weight
    assert weight is not None
    own = "per group" if weight.group_size is not None else "per tensor" if weight.axis is None else "per channel"
    return own + (", per token" if activation is not None and activation.group_size == 0 else "")


def test_the_table_of_presets_says_what_the_bundled_presets_are() -> None:
    found = {
        name: Facets(f"{dtype_of(preset.activation)} × {dtype_of(preset.weight)}", granularity_of(preset))
        for name, preset in BUNDLED.items()
    }
    assert dict(PRESETS) == found


UINT8 = {"dtype": "uint8"}
PER_CHANNEL = {"dtype": "int8", "symmetric": True, "axis": 0}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("int16", Facets("int16 × int8", "per channel")),
        ({"activation": UINT8, "weight": {"dtype": "int8"}}, Facets("uint8 × int8", "per tensor")),
        ({"activation": None, "weight": PER_CHANNEL}, Facets("float × int8", "per channel")),
        ({"activation": None, "weight": {"dtype": "int4", "group_size": 8}}, Facets("float × int4", "per group")),
        (
            {"activation": {"dtype": "int8", "observer": "runtime", "group_size": 0}, "weight": PER_CHANNEL},
            Facets("int8 × int8", "per channel, per token"),
        ),
        ({"default": None}, FLOAT),
        ({"default": None, "types": {"nn.Linear": "per_tensor"}}, Facets("uint8 × int8", "per tensor")),
        ({"default": "default", "modules": {"0": None}}, Facets("uint8 × int8", "per channel")),
        ({"default": "default", "modules": {"0": "int16"}}, Facets("uint8 × int8 + int16 × int8", "per channel")),
        ({"default": "a_name_of_another_library"}, Facets("a_name_of_another_library", "a_name_of_another_library")),
    ],
)
def test_what_a_case_quantizes_follows_from_its_qconfig(written: object, expected: Facets) -> None:
    case = replace(cases_of(LINEAR)[0], qconfig=QConfigModel.model_validate(written))
    assert facets(case) == expected
    assert (subject_of(case).dtype, subject_of(case).granularity) == expected


def test_without_a_qconfig_it_is_the_mode_s_own() -> None:
    assert {facets(case) for case in cases_of(LINEAR)} == {Facets("uint8 × int8", "per channel")}
