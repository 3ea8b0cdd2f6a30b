from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_specs import LINEAR, case_of, cases_of
from torch import nn

from conformance.case import Case
from conformance.errors import ConformanceError
from conformance.modules import MAX_ELEMENTS, build

TAIL = "\ncapture: [export]\nexpect: {debug_equal: 0 quanta}"
FINGERPRINT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from small_specs import LINEAR, cases_of
from conformance.inputs import calibration_of, inputs_of
from conformance.modules import build
for case in cases_of(LINEAR):
    inputs = inputs_of(case)
    tensors = [*build(case).state_dict().values(), *inputs, *(x for b in calibration_of(case, inputs) for x in b)]
    print(case.id, hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest())
"""


def case(module: str, shape: str = "[4, 30]", **keys: str) -> Case:
    extra = "".join(f"\n{key}: {value}" for key, value in keys.items())
    return case_of(f"module: {module}\ninputs: {{x: {{shape: {shape}}}}}{extra}{TAIL}")


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_see_the_same_numbers_for_a_case() -> None:
    here = str(Path(__file__).parent)
    said = []
    for hash_seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", FINGERPRINT, here], env=environ, capture_output=True, text=True, check=True
        )
        said.append(done.stdout.splitlines())
    assert said[0] == said[1]
    assert len(said[0]) == len(cases_of(LINEAR))


def test_modes_and_captures_see_the_same_module_and_other_parameters_another() -> None:
    cases = {case.id.partition("::")[2]: case for case in cases_of(LINEAR)}
    assert same(build(cases["linear[static-export]"]), build(cases["linear[dynamic-export]"]))
    relu = [case for case in cases.values() if case.spec_id == "linear_relu"]
    weights = {float(build(case).state_dict()["0.weight"].sum()) for case in relu}
    assert len(weights) == 2, "one for each value of bias"


@given(st.integers(0, 2**63))
def test_the_global_random_state_neither_matters_nor_changes(seed: int) -> None:
    torch.manual_seed(seed)
    state = torch.random.get_rng_state()
    module = build(case("nn.Linear(30, 20)"))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(0)
    assert same(module, build(case("nn.Linear(30, 20)")))


@pytest.mark.parametrize(
    ("module", "kinds"),
    [
        ("nn.Linear(30, 20)", ["Linear"]),
        ('["nn.Linear(30, 20)", nn.ReLU()]', ["Sequential", "Linear", "ReLU"]),
        ("nn.Sequential(nn.Linear(30, 20), nn.ReLU())", ["Sequential", "Linear", "ReLU"]),
    ],
)
def test_short_forms(module: str, kinds: list[str]) -> None:
    built = build(case(module))
    assert [type(part).__name__ for part in built.modules()] == kinds
    assert not any(part.training for part in built.modules())


def test_nested_layers_lists_parameters_and_methods() -> None:
    nested = case_of("""
        module:
          layers:
            inner:
              layers: {fc: "nn.Linear(30, 30)"}
              forward: |
                def forward(self, x):
                    return self.fc(x)
            rest: "nn.ModuleList([nn.Linear(30, 30), nn.Linear(30, 30)])"
            scale: nn.Parameter(torch.full((1,), 2.0))
          forward: |
            def forward(self, x):
                x = self.inner(x)
                for layer in self.rest:
                    x = self.twice(layer(x))
                return x
            def twice(self, x):
                return x * self.scale
        inputs: {x: {shape: [4, 30]}}
        capture: [export]
        expect: {debug_equal: 0 quanta}
    """)
    module = build(nested)
    assert set(dict(module.named_parameters())) == {
        *(f"{path}.{kind}" for path in ("inner.fc", "rest.0", "rest.1") for kind in ("weight", "bias")),
        "scale",
    }
    x = torch.rand(4, 30)
    wanted = module.rest[1](module.rest[0](module.inner.fc(x)) * 2) * 2
    assert torch.equal(module(x), wanted)


def test_the_text_of_forward_can_be_inspected() -> None:
    text = case_of("""
        module:
          forward: |
            def forward(self, x):
                return torch.relu(x) + math.pi
        inputs: {x: {shape: [4, 30]}}
        capture: [export]
        expect: {debug_equal: 0 quanta}
    """)
    source = inspect.getsource(type(build(text)).forward)
    assert "torch.relu(x) + math.pi" in source


def test_forward_has_no_builtins_but_those_of_the_table() -> None:
    module = build(case('{forward: "def forward(self, x): return x + len(x.shape)"}'))
    assert torch.equal(module(torch.zeros(2, 3)), torch.full((2, 3), 2.0))
    names = type(module).forward.__globals__
    assert set(names["__builtins__"]) <= {"__import__"}, "which Python's own warnings need, and the text can't name"
    assert not {"open", "eval", "exec", "__import__", "getattr", "os", "sys"} & set(names)


def test_batch_norms_are_not_the_identity() -> None:
    norm = build(case("nn.BatchNorm2d(64)", "[1, 64, 4, 4]"))
    for name, low, high in (("running_mean", -0.5, 0.5), ("running_var", 0.5, 2), ("weight", 0.5, 1.5)):
        values = getattr(norm, name)
        assert low <= values.min() < values.max() <= high
    assert norm.bias.abs().max() > 0
    assert build(case("nn.BatchNorm2d(64, affine=False)", "[1, 64, 4, 4]")).weight is None


def test_parameters_are_drawn_by_path_or_pattern() -> None:
    module = build(
        case(
            '["nn.Linear(30, 20)", "nn.BatchNorm1d(20)"]',
            parameters='{"*.bias": {distribution: constant, value: 7}, "0.weight": {range: [3, 4]}, '
            "1.running_var: {range: [9, 10]}}",
        )
    )
    assert bool((module[0].bias == 7).all()) and bool((module[1].bias == 7).all())
    assert module[0].weight.min() >= 3 and module[0].weight.max() <= 4
    assert module[1].running_var.min() >= 9
    assert module[0].weight.requires_grad


def test_a_pattern_that_names_nothing_says_what_there_is() -> None:
    with pytest.raises(ConformanceError) as caught:
        build(case('["nn.Linear(30, 20)"]', parameters="{0.wieght: {range: [0, 1]}}"))
    assert str(caught.value) == (
        "parameters: '0.wieght' names no parameter. Did you mean '0.weight'? There are: 0.weight, 0.bias"
    )
    with pytest.raises(ConformanceError, match="There are: none"):
        build(case("nn.ReLU()", parameters="{weight: {range: [0, 1]}}"))


def test_a_module_that_is_too_large_is_refused_before_memory_is_taken() -> None:
    side = int(MAX_ELEMENTS**0.5)
    with pytest.raises(ConformanceError, match=f"expected at most {MAX_ELEMENTS}"):
        build(case(f"nn.Linear({side}, {side})"))
    with pytest.raises(ConformanceError, match="make its layers smaller"):
        build(case("nn.Linear(1000000, 1000000)"))


def test_python_modules_need_permission() -> None:
    foreign = case("{python: torch.nn:Identity}")
    with pytest.raises(ConformanceError, match="--allow-python"):
        build(foreign)
    assert isinstance(build(foreign, allow_python=True), nn.Identity)


def test_a_factory_must_return_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "factories_of_test.py").write_text(
        "import torch\ndef bad(): return 3\ndef good(): return torch.nn.Linear(30, 20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConformanceError, match=r"to return a torch\.nn\.Module, found int"):
        build(case("{python: factories_of_test:bad}"), allow_python=True)
    good = case("{python: factories_of_test:good}")
    assert same(build(good, allow_python=True), build(good, allow_python=True)), "its weights follow the seed too"


@pytest.mark.parametrize("target", ["no_such_package_of_test:make", "torch.nn:NoSuchLayer"])
def test_a_factory_that_does_not_exist_is_a_clear_error(target: str) -> None:
    with pytest.raises(ConformanceError, match=target):
        build(case(f"{{python: {target}}}"), allow_python=True)
