"""The guide for authors of backends: its texts are taken out of it and run."""

from __future__ import annotations

import re
import textwrap
import tomllib
import types
from pathlib import Path

import pytest
from small_specs import case_of

from conformance.backend import About, Backend
from conformance.case import Case
from conformance.engine import run_case
from conformance.record import Outcome, Verdict

GUIDE = (Path(__file__).parents[2] / "docs" / "backend.md").read_text(encoding="utf-8")
# By the words after the three marks: the language, and the file's name where there is one.
BLOCKS = dict(re.findall(r"^```(\S+(?: \S+)?)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))

# What stands around the guide's lines for engines that take ONNX.
ENGINE = """\
from conformance.backends.given import given_graph
from conformance.backends.onnx_reference import OnnxReference, evaluator

class Engine:
    def about(self):
        return OnnxReference().about()

    def quantize(self, task, stage):
"""


def executed(text: str, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
    return module


@pytest.fixture
def mine() -> Backend:
    """The backend that the guide prints, found as its pyproject.toml names it."""
    project = tomllib.loads(BLOCKS["toml pyproject.toml"])
    module, _, function = project["project"]["entry-points"]["conformance.backends"]["mine"].partition(":")
    assert project["tool"]["setuptools"]["py-modules"] == [module]
    backend: Backend = getattr(executed(BLOCKS[f"python {module}.py"], module), function)("")
    return backend


def dynamic(module: str, operator: str, more: str = "") -> Case:
    return case_of(f"""
        module: {module}
        inputs: {{x: {{shape: [4, 12]}}}}
        modes: [dynamic]
        capture: [export]
        {more}
        expect: {{ops: {{"quantized::{operator}": 1}}, accuracy: {{sqnr_db: 30}}}}
    """)


def test_it_has_two_screens() -> None:
    lines = GUIDE.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 120


def test_its_backend_says_what_it_is(mine: Backend) -> None:
    about = mine.about()
    assert isinstance(about, About) and about.name == "mine" and not about.missing


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        (dynamic("nn.Linear(12, 8)", "linear_dynamic"), Verdict.NATIVE),
        (dynamic('["nn.Linear(12, 8)", nn.ReLU()]', "linear_relu_dynamic"), Verdict.FALLBACK),
        (dynamic("nn.Linear(12, 8)", "linear_dynamic", "qconfig: per_tensor"), Verdict.UNSUPPORTED),
    ],
)
def test_its_backend_gets_the_verdicts_that_it_tells_of(mine: Backend, case: Case, verdict: Verdict) -> None:
    record = run_case(case, mine, "mine").record
    assert record.verdict is verdict, record


def test_what_it_says_of_vectors_is_so(mine: Backend) -> None:
    """A refusal by torch that nobody declared is wrong."""
    case = case_of("""
        module: nn.Linear(12, 8)
        inputs: {x: {shape: [12]}}
        modes: [dynamic]
        capture: [export]
        expect: {ops: {quantized::linear_dynamic: 1}, accuracy: {sqnr_db: 30}}
    """)
    record = run_case(case, mine, "mine").record
    assert record.verdict is Verdict.WRONG and record.stage == "compile", record


def test_its_lines_for_engines_that_take_onnx() -> None:
    pytest.importorskip("onnx")
    body = BLOCKS["python"].replace("program = ...", "program = evaluator(given.model)")
    assert "evaluator" in body
    engine: Backend = executed(ENGINE + textwrap.indent(body, " " * 8), "engine").Engine()
    case = case_of("""
        module: nn.Linear(12, 8)
        inputs: {x: {shape: [4, 12]}}
        modes: [numerics]
        capture: [export]
        expect: {ops: {quantized::linear: 1}, accuracy: {sqnr_db: 30}}
    """)
    record = run_case(case, engine, "engine").record
    held = {finding.check for finding in record.findings if finding.outcome is Outcome.HELD}
    assert record.verdict is Verdict.FALLBACK and {"debug_equal", "accuracy"} <= held, record
