from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from commands import Command
from offered import offer
from small_specs import written

from conformance.errors import EnvironmentTrouble, UsageError
from conformance.interpreters import interpreters
from conformance.pool import Acquaintances, Terms
from conformance.record import Verdict
from conformance.store import read

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["odd"], "expected NAME=PATH with each NAME once, found 'odd'"),
        (["=python3"], "expected NAME=PATH"),
        (["odd=python3", "odd=python3"], "each NAME once"),
        (["od=python3"], "no backend 'od' is run; expected one of odd"),
        (["odd=/no/such/python"], "'/no/such/python' is no program"),
    ],
)
def test_mistakes(given: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        interpreters(given, ["odd:target"])


def test_an_interpreter_is_named_for_a_backend_with_all_its_targets() -> None:
    found = interpreters(["odd=python3"], ["odd:one", "odd:two", "qlib"])
    assert found == {"odd": shutil.which("python3")}
    assert interpreters(["odd=python3"], ["all"]) == found
    terms = Terms(pythons=found)
    assert terms.python_of("odd:one") == found["odd"] and terms.python_of("qlib") is None


def shim(folder: Path, *options: str) -> Path:
    """A program that is Python with an environment of its own: one more folder to import from, where backends are."""
    path = folder / "python-of-another-environment"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{folder}" exec {sys.executable} {" ".join(options)} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """An interpreter in whose environment there are backends that this one does not know."""
    (folder := tmp_path / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        offer(folder, patch)
    return shim(folder)


def test_a_backend_that_only_the_other_environment_knows(elsewhere: Path, conformance: Command, small: Path) -> None:
    arguments = ["run", small, "-k", "linear[", "--backend", "chatty:loud", "-o", "out"]
    assert "no backend is named 'chatty'" in conformance(*arguments).err
    said = conformance(*arguments, "--python", f"chatty={elsewhere}")
    found = read(Path("out") / "results.jsonl")
    assert (said.code, [record.verdict for record in found.records]) == (0, [Verdict.NATIVE] * 2), said.err
    assert all("native code says hello" in record.stderr for record in found.records)
    assert {"qlib", "torch"} <= set(found.run.declared["chatty:loud"].versions)


def test_the_plug_in_has_the_option_too(elsewhere: Path, pytester: pytest.Pytester) -> None:
    written(pytester.path)
    options = ["-k", "dynamic", "--backend", "chatty", "--conformance-results", "r.jsonl"]
    result = pytester.runpytest(*options, "--python", f"chatty={elsewhere}")
    result.assert_outcomes(passed=1, deselected=5)
    assert read(pytester.path / "r.jsonl").run.declared["chatty"].versions
    result = pytester.runpytest(*options, "--python", "chatty=/no/such/python")
    result.stderr.fnmatch_lines(["*'/no/such/python' is no program that can be run*"])


def test_an_environment_that_lacks_what_the_suite_needs_says_so(tmp_path: Path) -> None:
    bare = shim(tmp_path, "-S")
    trouble = Acquaintances(Terms(pythons={"qlib": str(bare)})).ask("qlib")
    assert isinstance(trouble, EnvironmentTrouble)
    assert "has no module" in str(trouble) and "install it there" in str(trouble)


def test_a_program_that_is_no_python(tmp_path: Path) -> None:
    (program := tmp_path / "no-python").write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    for path, text in {str(program): "can't be started", "/bin/false": "ended before its hello: exit status 1"}.items():
        trouble = Acquaintances(Terms(pythons={"qlib": path})).ask("qlib")
        assert isinstance(trouble, EnvironmentTrouble) and text in str(trouble)
