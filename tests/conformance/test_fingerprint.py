from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_specs import LINEAR, case_of, cases_of

from conformance.fingerprint import fingerprint

BODY = """
module: {layers: {fc: "nn.Linear(30, 20)"}, forward: "def forward(self, x, y): return self.fc(x) + y"}
inputs: {x: {shape: [4, 30]}, y: {shape: [4, 20], range: [-1, 1]}}
parameters: {fc.weight: {range: [-1, 1]}}
qconfig: {default: default, modules: {fc: null}}
capture: [export]
expect: {ops: {quantized::linear: 1, quantized::add: 1}, accuracy: {sqnr_db: 30}}
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nn.Linear(30, 20)", "nn.Linear(30, 20, bias=False)"),
        ("return self.fc(x) + y", "return y + self.fc(x)"),
        ("shape: [4, 30]", "shape: [5, 30]"),
        ("range: [-1, 1]}}\np", "range: [-2, 1]}}\np"),
        ("fc.weight", "fc.bias"),
        ("fc: null", "fc: default"),
        ("quantized::linear: 1", "quantized::linear: 2"),
        ("sqnr_db: 30", "sqnr_db: 31"),
        ("export", "trace"),
        ("capture:", "modes: [dynamic]\ncapture:"),
        ("capture:", "calibration: 3\ncapture:"),
        ("sqnr_db: 30}}", "sqnr_db: 30}, debug_equal: 1 quanta}"),
    ],
)
def test_what_a_case_asks_changes_its_fingerprint(old: str, new: str) -> None:
    assert old in BODY
    assert fingerprint(case_of(BODY)) != fingerprint(case_of(BODY.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("quantized::linear: 1, quantized::add: 1", "quantized::add: 1, quantized::linear: 1"),
        ("range: [-1, 1]}}\np", "range: [-1.0, 1.0]}}\np"),
        ("capture:", "# a comment\ncapture:"),
        ("capture:", "timeout: 20\ncapture:"),
        ("capture:", "modes: [static]\ncapture:"),
    ],
)
def test_what_it_does_not_ask_changes_nothing(old: str, new: str) -> None:
    assert old in BODY
    assert fingerprint(case_of(BODY)) == fingerprint(case_of(BODY.replace(old, new, 1)))


def test_the_order_of_inputs_counts() -> None:
    """They are given by position; only for a module that is written out does reading a spec check their names."""
    body = "module: {python: m:f}\ninputs: {a: {shape: [1]}, b: {shape: [2]}}\ncapture: [export]\nexpect: {output: {shape: [1]}}"
    turned = body.replace("a: {shape: [1]}, b: {shape: [2]}", "b: {shape: [2]}, a: {shape: [1]}")
    assert fingerprint(case_of(body)) != fingerprint(case_of(turned))


def test_cases_of_a_matrix_differ_and_their_place_counts_for_nothing() -> None:
    found = [fingerprint(case) for case in cases_of(LINEAR)]
    assert len(set(found)) == 6
    assert [fingerprint(case) for case in cases_of("# moved\n" + LINEAR, "other.qspec.yaml")] == found


def test_every_process_finds_the_same() -> None:
    script = (
        "from small_specs import LINEAR, cases_of; from conformance.fingerprint import fingerprint;"
        "print(*map(fingerprint, cases_of(LINEAR)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
                "PYTHONHASHSEED": seed,
            },
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {" ".join(map(fingerprint, cases_of(LINEAR))) + "\n"}
