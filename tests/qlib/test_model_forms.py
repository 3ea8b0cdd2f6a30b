"""The final form as an object: copied, pickled, saved, exported, run twice."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from graphs import Draft, Forms, aten, forms
from torch import Tensor, fx

from qlib.executed import executed_ops
from qlib.graph import attribute
from qlib.oracle import replay
from qlib.passes.convert import convert
from qlib.passes.lower import lower
from qlib.qconfig import PRESETS, QConfigMapping, at_run_time

DYNAMIC = QConfigMapping(at_run_time(PRESETS["default"]))


def static() -> Forms:
    draft = Draft()
    first = draft.relu(draft.conv(draft.input(2, 3, 6, 6), 4, "body.conv"))
    curve = draft.call(aten.hardswish.default, draft.call(aten.max_pool2d.default, first, [2, 2]))
    flat = draft.call(aten.flatten.using_ints, curve, 1)
    return forms(draft.done(draft.linear(flat, 5)))


def dynamic() -> Forms:
    draft = Draft()
    return forms(draft.done(draft.linear(draft.relu(draft.linear(draft.input(4, 6), 5, "one")), 3, "two")), DYNAMIC)


def saved(model: fx.GraphModule, folder: Path) -> fx.GraphModule:
    torch.save(model, folder / "model.pt")
    loaded = torch.load(folder / "model.pt", weights_only=False)
    assert isinstance(loaded, fx.GraphModule)
    return loaded


def pickled(model: fx.GraphModule, folder: Path) -> fx.GraphModule:
    loaded = pickle.loads(pickle.dumps(model))
    assert isinstance(loaded, fx.GraphModule)
    return loaded


def copied(model: fx.GraphModule, folder: Path) -> fx.GraphModule:
    return copy.deepcopy(model)


MAKE: dict[str, Callable[[], Forms]] = {"static": static, "dynamic": dynamic}
WAYS: dict[str, Callable[[fx.GraphModule, Path], fx.GraphModule]] = {
    "deepcopy": copied,
    "pickle": pickled,
    "torch.save": saved,
}


@pytest.mark.parametrize("form", ["prepared", "debug", "final"])
@pytest.mark.parametrize("make", sorted(MAKE))
@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_form_survives(way: str, make: str, form: str, tmp_path: Path) -> None:
    found = MAKE[make]()
    model: fx.GraphModule = getattr(found, form)
    expected = model(*found.inputs)  # the weights are packed now
    for again in (twin := WAYS[way](model, tmp_path), WAYS[way](twin, tmp_path)):
        assert torch.equal(again(*found.inputs), expected)
        assert type(again).__mro__[1] is type(model).__mro__[1]


RETRACING = ["deepcopy", "pickle", "torch.save"]


@pytest.mark.parametrize("make", sorted(MAKE))
@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_final_form_keeps_its_operators_and_state(way: str, make: str, tmp_path: Path) -> None:
    assert_same_graph(final := MAKE[make]().final, WAYS[way](final, tmp_path))


@pytest.mark.parametrize("way", RETRACING)
def test_a_debug_form_keeps_its_operators_and_state(way: str, tmp_path: Path) -> None:
    assert_same_graph(debug := static().debug, WAYS[way](debug, tmp_path))


def assert_same_graph(model: fx.GraphModule, other: fx.GraphModule) -> None:
    assert executed_ops(other) == executed_ops(model)
    assert set(other.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("way", RETRACING)
def test_a_debug_form_can_still_be_lowered(way: str, tmp_path: Path) -> None:
    found = static()
    again = lower(WAYS[way](found.debug, tmp_path))
    assert executed_ops(again) == executed_ops(found.final)


@pytest.mark.parametrize("way", RETRACING)
def test_a_prepared_form_can_still_be_converted_and_lowered(way: str, tmp_path: Path) -> None:
    found = static()
    again = lower(convert(WAYS[way](found.prepared, tmp_path)))
    assert executed_ops(again) == executed_ops(found.final)
    assert torch.equal(again(*found.inputs), found.final(*found.inputs))


@pytest.mark.parametrize("way", RETRACING)
def test_a_final_form_can_still_be_explained(way: str, tmp_path: Path) -> None:
    found = static()
    again = WAYS[way](found.final, tmp_path)
    before, after = (replay(found.debug, form, found.inputs) for form in (found.final, again))
    assert [step.name for step in after.steps] == [step.name for step in before.steps]


def test_a_copy_has_its_own_weights() -> None:
    found = static()
    expected = found.final(*found.inputs)
    twin = copy.deepcopy(found.final)
    attribute(twin, "fc.weight_int8").zero_()
    assert not torch.equal(twin(*found.inputs), expected)
    assert torch.equal(found.final(*found.inputs), expected)


def test_the_state_can_be_loaded_into_another_copy() -> None:
    found = static()
    expected = found.final(*found.inputs)
    other = copy.deepcopy(found.final)
    with torch.no_grad():
        for value in other.state_dict().values():
            value.zero_()
    other(*found.inputs)
    other.load_state_dict(found.final.state_dict())
    assert torch.equal(other(*found.inputs), expected)


def test_a_saved_model_finds_its_operators_in_a_new_process(tmp_path: Path) -> None:
    found = static()
    torch.save((found.final, found.inputs, found.final(*found.inputs)), tmp_path / "model.pt")
    program = "\n".join(
        [
            "import sys, torch",
            f"sys.path[:0] = {sys.path!r}",
            f"model, inputs, expected = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)",
            "assert torch.equal(model(*inputs), expected)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("make", sorted(MAKE))
@pytest.mark.parametrize("form", ["debug", "final"])
def test_a_form_can_be_exported(make: str, form: str) -> None:
    found = MAKE[make]()
    model: fx.GraphModule = getattr(found, form)
    program = torch.export.export(model, found.inputs)
    assert torch.equal(program.module()(*found.inputs), model(*found.inputs))
    kernels = [n for n in executed_ops(model) if n.startswith("quantized::")]
    exported = {str(n.target) for n in program.graph.nodes}
    for name in kernels:
        short = name.partition("::")[2]
        assert any(short in target for target in exported), short


@pytest.mark.parametrize("called", ["before", "never"])
def test_a_form_can_be_exported_for_any_batch(called: str) -> None:
    found = static()
    if called == "before":
        found.final(*found.inputs)
    program = torch.export.export(found.final, found.inputs, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for batch in (2, 5):
        x = torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(batch))
        assert torch.equal(program.module()(x), found.final(x))


@pytest.mark.parametrize("make", sorted(MAKE))
def test_running_twice_and_under_inference_mode(make: str) -> None:
    found = MAKE[make]()
    expected: Tensor = found.final(*found.inputs)
    assert torch.equal(found.final(*found.inputs), expected)
    with torch.inference_mode():
        assert torch.equal(found.final(*found.inputs), expected)


@pytest.mark.parametrize("make", sorted(MAKE))
def test_another_batch_size(make: str) -> None:
    found = MAKE[make]()
    x = found.inputs[0]
    single = [found.final(x[i : i + 1]) for i in range(x.shape[0])]
    if make == "static":
        assert torch.equal(torch.cat(single), found.final(x))
    assert all(y.shape == found.final(x)[:1].shape for y in single)
