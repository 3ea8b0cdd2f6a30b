from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path

import pytest
from commands import Command
from small_specs import case_of, written

from conformance.backends import open_backend
from conformance.engine import run_case
from conformance.errors import EnvironmentTrouble, UsageError
from conformance.pool import Acquaintances
from conformance.record import Record
from conformance.store import read

torch = pytest.importorskip("torch")
EXAMPLE = Path(__file__).parents[2] / "examples" / "backend_js" / "backend.js"
LINEAR = """
    module: nn.Linear(6, 3)
    inputs: {x: {shape: [2, 6]}}
    modes: [numerics]
    capture: [export]
    expect:
      ops: {quantized::linear: 1}
      debug_equal: 0 quanta
"""
# A program without any package: greets, and answers as it is told to.
PROGRAM = """
import base64, json, os, sys

def say(value):
    print(json.dumps(value), flush=True)

say({"hello": HELLO})
for line in sys.stdin:
    message = json.loads(line)
    if "load" in message:
        LOAD
    else:
        RUN
"""
HELLO = {"name": "odd", "versions": {"odd": "1"}, "lacks": ["convolutions"]}
LOADED = "say({'loaded': {'ops': ['quantized::linear', 'odd']}})"
ZEROS = "say({'outputs': [{'dtype': 'float32', 'shape': [2, 3], 'data': base64.b64encode(bytes(24)).decode()}]})"


def program(folder: Path, load: str = LOADED, run: str = ZEROS, hello: object = HELLO) -> str:
    path = folder / "program.py"
    path.write_text(PROGRAM.replace("HELLO", repr(hello)).replace("LOAD", load).replace("RUN", run))
    return f"exec:{sys.executable} -S {path}"


def ran(name: str, body: str = LINEAR) -> Record:
    return run_case(case_of(textwrap.dedent(body)), open_backend(name), name).record


def test_a_command_is_needed_and_must_greet(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a command"):
        open_backend("exec")
    for command, text in {
        "no-such-program": "can't be started",
        f"{sys.executable} -c pass": "ended before its hello: exit status 0",
        f"{sys.executable} -c print(1)": "expected a message in JSON",
        f"{sys.executable} -c 'print(\"{{}}\")'": "expected a hello",
    }.items():
        trouble = Acquaintances().ask(f"exec:{command}")
        assert isinstance(trouble, EnvironmentTrouble) and text in str(trouble)


def test_the_hello_says_what_the_program_can(tmp_path: Path) -> None:
    about = Acquaintances().ask(program(tmp_path))
    assert not isinstance(about, EnvironmentTrouble)
    assert (about.name, about.versions, about.modes) == ("odd", {"odd": "1"}, {"numerics"})
    assert about.lacks == {"convolutions"}


ANSWERS = {
    "zeros": (LOADED, ZEROS, "wrong", None),
    "no tensors": (LOADED, "say({'outputs': []})", "wrong", None),
    "no outputs": (LOADED, "say({'done': 1})", "wrong", "expected 'outputs', found {'done': 1}"),
    "an odd type": (LOADED, "say({'outputs': [{'dtype': 'int4', 'shape': [], 'data': ''}]})", "wrong", "found 'int4'"),
    "too few bytes": (LOADED, ZEROS.replace("24", "20"), "wrong", "expected a tensor"),
    "declared": ("say({'unsupported': 'no conv', 'feature': 'convolutions'})", ZEROS, "unsupported", "no conv"),
    "undeclared": ("say({'unsupported': 'no linear'})", ZEROS, "wrong", "without having declared it: no linear"),
    "failed": ("say({'failed': 'out of registers'})", ZEROS, "wrong", "out of registers"),
    "dies": (LOADED, "os.kill(os.getpid(), 11)", "crash", "killed by SIGSEGV"),
    "garbage": (LOADED, "print('Loading...', flush=True)", "wrong", "Loading..."),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_answer_has_its_verdict(answer: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    load, run, verdict, text = ANSWERS[answer]
    record = ran(program(tmp_path, load, run))
    assert str(record.verdict) == verdict, record.error
    assert (text or "") in (record.error or "")
    if answer == "zeros":
        assert record.executed_ops == {"quantized::linear": 1, "unmapped:odd": 1}


@pytest.fixture
def example() -> str:
    """The backend in JavaScript."""
    pytest.importorskip("onnx")
    if shutil.which("node") is None:
        pytest.skip("needs node")
    return f"exec:node {EXAMPLE}"


@pytest.mark.parametrize("qconfig", ["default", "int8", "per_tensor"])
def test_the_example_computes_linear_layers_to_the_integer(example: str, qconfig: str) -> None:
    from conformance.backends.qlib import vocabulary

    if qconfig not in vocabulary().qconfigs:
        pytest.skip(f"no preset {qconfig}")
    record = ran(example, LINEAR + f"    qconfig: {qconfig}\n")
    assert str(record.verdict) == "native", (record.error, record.findings)
    assert record.measures.wrong == 0


def test_the_example_says_what_it_computes_in_float_and_what_it_lacks(example: str) -> None:
    layers = '["nn.Linear(6, 3)", "nn.ReLU()", "nn.Linear(3, 3)"]'
    body = LINEAR.replace("nn.Linear(6, 3)", layers).replace("{quantized::linear: 1}", "{quantized::linear_relu: 1}")
    assert ran(example, body).executed_ops["quantized::linear_relu"] == 1
    record = ran(
        example, LINEAR.replace("nn.Linear(6, 3)", "nn.Softmax(-1)").replace("quantized::linear", "quantized::softmax")
    )
    assert str(record.verdict) == "unsupported", (record.error, record.findings)
    assert "the operator" in str(record.error)


def test_the_example_from_the_command_line(example: str, conformance: Command, tmp_path: Path) -> None:
    text = "spec: 1\nsuite: js\ncases:\n  - id: one\n    why: a test" + LINEAR
    said = conformance("run", written(tmp_path, text, "js"), "--backend", example, "-o", "out")
    found = read(Path("out") / "results.jsonl")
    assert (said.code, [str(record.verdict) for record in found.records]) == (0, ["native"]), said.out
    assert set(found.run.declared[example].versions) == {"node"}
