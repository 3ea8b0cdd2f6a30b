"""Small specs that the tests of running share, and the ways to have them as cases or as files."""

from __future__ import annotations

import textwrap
from pathlib import Path

from conformance.backends.qlib import vocabulary
from conformance.case import Case, expand
from conformance.load import load_text

# Two specs, six cases.
LINEAR = """\
spec: 1
suite: small
defaults:
  inputs: {x: {shape: [4, 30]}}
cases:
  - id: linear_relu
    why: the pattern that every backend has
    matrix: {bias: [true, false]}
    module: ["nn.Linear(30, 20, bias=${bias})", nn.ReLU()]
    capture: [export, trace]
    expect:
      ops: {quantized::linear_relu: 1}
      absent: [aten::linear, aten::relu]
      accuracy: {sqnr_db: 30}

  - id: linear
    why: the simplest layer, in both modes
    module: nn.Linear(30, 20)
    modes: [static, dynamic]
    capture: [export]
    expect:
      ops: {static: {quantized::linear: 1}, dynamic: {quantized::linear_dynamic: 1}}
      accuracy: {sqnr_db: 30}
"""

# One case for each verdict that the bundled library can be brought to.
VERDICTS = """\
spec: 1
suite: verdicts
defaults:
  inputs: {x: {shape: [4, 30]}}
  capture: [export]
cases:
  - id: native
    why: all that is asked for holds
    module: nn.Linear(30, 20)
    expect: {ops: {quantized::linear: 1}, accuracy: {sqnr_db: 30}}
  - id: fallback
    why: the values are right, and another operator ran
    module: nn.Linear(30, 20)
    expect: {ops: {quantized::linear_relu: 1}, accuracy: {sqnr_db: 30}}
  - id: wrong
    why: no 8-bit result comes this close
    module: nn.Linear(30, 20)
    expect: {ops: {quantized::linear: 1}, accuracy: {sqnr_db: 140}}
  - id: error
    why: the pattern names no parameter, which is the harness's to say
    module: nn.Linear(30, 20)
    parameters: {wieght: {range: [-1, 1]}}
    expect: {ops: {quantized::linear: 1}}
  - id: vacuous
    why: a relu is not in the float graph, so that its absence shows nothing
    module: nn.Linear(30, 20)
    expect: {absent: [aten::relu]}
"""
# Unsupported for a backend that declares no training.
UNSUPPORTED = """\
spec: 1
suite: verdicts
cases:
  - id: unsupported
    why: a mode that a backend does not declare is no failure of it
    module: nn.Linear(30, 20)
    inputs: {x: {shape: [4, 30]}}
    capture: [export]
    modes: [qat]
    expect: {ops: {quantized::linear: 1}}
"""


def cases_of(text: str, path: str = "small.qspec.yaml") -> tuple[Case, ...]:
    return expand(load_text(text, path, vocabulary()))


def case_of(body: str) -> Case:
    """The only case of the only spec, of which `body` holds all keys but `id` and `why`."""
    head = "spec: 1\nsuite: small\ncases:\n  - id: one\n    why: a test\n"
    cases = cases_of(head + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n")
    assert len(cases) == 1
    return cases[0]


def written(folder: Path, text: str = LINEAR, name: str = "small") -> Path:
    path = folder / f"{name}.qspec.yaml"
    path.write_text(text)
    return path
