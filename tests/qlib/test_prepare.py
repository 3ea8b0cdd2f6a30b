"""Observers in their places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from graphs import Draft, aten, example, names
from torch import fx, nn

from qlib.observers import FixedObserver, Follower, HistogramObserver, MinMaxObserver, RuntimeObserver
from qlib.passes.prepare import prepare
from qlib.qconfig import PRESETS, QConfigMapping, as_mapping, at_run_time
from qlib.qparams import DType, QSpec


def observers(model: fx.GraphModule) -> dict[str, nn.Module]:
    """The observers by the name of the tensor that they stand at; a tensor's second one has a star."""
    found: dict[str, nn.Module] = {}
    for node in model.graph.nodes:
        if node.op == "call_module":
            name = node.args[0].name
            found[f"{name}*" if name in found else name] = model.get_submodule(str(node.target))
    return found


def layer_with_relu() -> fx.GraphModule:
    draft = Draft()
    return draft.done(draft.relu(draft.linear(draft.input(2, 3), 4)))


def test_a_layer_and_its_relu_have_three_observers() -> None:
    found = observers(prepare(layer_with_relu()))
    wanted = dict.fromkeys(("x0", "fc_weight", "relu_default"), MinMaxObserver)
    assert {name: type(o) for name, o in found.items()} == wanted
    assert found["fc_weight"].spec == QSpec(DType.INT8, symmetric=True, axis=0)
    assert found["x0"].spec == found["relu_default"].spec == QSpec()


def test_observing_changes_no_number() -> None:
    model = layer_with_relu()
    inputs = example(model)
    assert torch.equal(prepare(model)(*inputs), model(*inputs))


def test_the_captured_graph_is_left_alone() -> None:
    draft = Draft()
    model = draft.done(draft.batch_norm(draft.conv(draft.input(1, 2, 4), 3)))
    before = (str(model.graph), sorted(model.state_dict()))
    prepare(model)
    assert (str(model.graph), sorted(model.state_dict())) == before


def test_batch_norms_are_folded_first() -> None:
    draft = Draft()
    model = draft.done(draft.relu(draft.batch_norm(draft.conv(draft.input(1, 2, 4), 3))))
    found = prepare(model)
    assert names(found) == ["conv1d", "relu"]
    assert set(observers(found)) == {"x0", "conv_weight_folded", "relu_default"}


def test_a_group_has_one_observer_that_watches() -> None:
    draft = Draft()
    layer = draft.conv(draft.input(1, 2, 8), 3)
    pooled = draft.call(aten.max_pool1d.default, layer, [2], [2])
    flat = draft.call(aten.flatten.using_ints, pooled, 1)
    found = observers(prepare(draft.done(flat)))
    leader = found[layer.name]
    assert isinstance(leader, MinMaxObserver)
    for name in (pooled.name, flat.name):
        follower = found[name]
        assert isinstance(follower, Follower)
        assert follower.leader is leader


def test_followers_answer_after_calibration() -> None:
    draft = Draft()
    layer = draft.conv(draft.input(1, 2, 8), 3)
    model = draft.done(draft.call(aten.avg_pool1d.default, layer, [2], [2]))
    prepared = prepare(model)
    prepared(*example(model))
    leader, follower = (observers(prepared)[name] for name in (layer.name, "avg_pool1d_default"))
    assert follower.qparams() == leader.qparams()  # type: ignore[operator]


def test_fixed_results_are_not_watched() -> None:
    draft = Draft()
    sigmoid = draft.call(aten.sigmoid.default, draft.linear(draft.input(2, 3), 4))
    found = observers(prepare(draft.done(sigmoid)))[sigmoid.name]
    assert isinstance(found, FixedObserver)
    assert float(found.qparams().scale) == 1 / 256


def test_a_second_description_stands_behind_the_first_observer() -> None:
    draft = Draft()
    one = draft.linear(draft.input(2, 4), 4, "one")
    two, three = draft.linear(one, 4, "two"), draft.linear(one, 4, "three")
    mapping = replace(as_mapping("default"), modules={"two": PRESETS["int8"]})
    prepared = prepare(draft.done(two, three), mapping)
    heads = {n.meta["module_path"]: n for n in prepared.graph.nodes if n.target is aten.linear.default}
    first = heads["three"].args[0]
    second = heads["two"].args[0]
    assert first.args[0] is heads["one"]
    assert second.args[0] is first
    dtypes = [prepared.get_submodule(n.target).spec.dtype for n in (first, second)]
    assert dtypes == [DType.UINT8, DType.INT8]


def test_dynamic_inputs_are_only_marked() -> None:
    mapping = QConfigMapping(at_run_time(PRESETS["default"]))
    found = observers(prepare(layer_with_relu(), mapping))
    assert {name: type(o) for name, o in found.items()} == {"x0": RuntimeObserver, "fc_weight": MinMaxObserver}


def test_a_preset_names_the_observer() -> None:
    found = observers(prepare(layer_with_relu(), "histogram"))
    assert isinstance(found["x0"], HistogramObserver)
    assert isinstance(found["fc_weight"], MinMaxObserver)


def test_a_weight_shared_by_two_layers_is_observed_for_each() -> None:
    draft = Draft()
    w = draft.draw("shared.weight", 3, 3)
    one = draft.call(aten.linear.default, draft.input(2, 3), w, None, module=("one", "nn.Linear"))
    two = draft.call(aten.linear.default, one, w, None, module=("two", "nn.Linear"))
    assert {"shared_weight", "shared_weight*"} <= set(observers(prepare(draft.done(two))))


def test_rules_that_matched_nothing_are_kept() -> None:
    mapping = QConfigMapping(PRESETS["default"], {"typo": None})
    assert prepare(layer_with_relu(), mapping).meta["unused_rules"] == ("modules: typo",)


def test_without_a_qconfig_the_graph_stays_as_it_is() -> None:
    prepared = prepare(layer_with_relu(), None)
    assert observers(prepared) == {}
    assert names(prepared) == ["linear", "relu"]


def test_a_misspelt_preset_is_refused() -> None:
    with pytest.raises(KeyError, match="defualt"):
        prepare(layer_with_relu(), "defualt")
