"""What stays in float is listed, each operator with the reason that its row or its QConfig gives."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captures import Of, image
from graphs import Draft, aten
from torch import Tensor, nn

from qlib.errors import QConfigError
from qlib.frontends.capture import capture
from qlib.leftovers import Leftover
from qlib.passes.prepare import prepare
from qlib.qconfig import PRESETS, QConfigMapping
from qlib.quantize import mapping_for

X = image(2, 5, 4)
IDS = (torch.tensor([[1, 2], [0, 3]]),)


def left(module: nn.Module, inputs: tuple[Tensor, ...], mode: str = "static", qconfig: Any = "default") -> list[Any]:
    found = prepare(capture(module.eval(), inputs), mapping_for(mode, qconfig)).meta["left_in_float"]
    return [(leftover.operator, leftover.reason) for leftover in found]


def test_nothing_is_left_of_a_layer() -> None:
    assert left(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), X) == []


CASES: dict[str, tuple[nn.Module, str, Any, str, str]] = {
    "no row": (
        Of(lambda s, x: torch.cumsum(x, 0)),
        "static",
        "default",
        "aten::cumsum",
        "no row of the operator table",
    ),
    "none": (nn.Linear(4, 3), "static", QConfigMapping(), "aten::linear", "its QConfig is None"),
    "computed": (
        Of(lambda s, x: F.linear(x, s.w * 2), {"w": nn.Parameter(torch.ones(3, 4))}),
        *("static", "default", "aten::linear", "its weight is computed, not constant"),
    ),
    "float input": (Of(lambda s, x: x.tanh()), "static", "default", "aten::tanh", "its input is not quantized"),
    "float inputs": (Of(lambda s, x: x @ x.mT), "static", "default", "aten::matmul", "its inputs are not quantized"),
    "beforehand": (nn.LSTM(4, 3), "static", "default", "aten::lstm", "ranges that are known beforehand"),
    "at run time": (nn.LayerNorm(4), "dynamic", "default", "aten::layer_norm", "ranges at run time"),
    "groups": (
        *(nn.Linear(4, 3), "static"),
        PRESETS["default"].__class__(PRESETS["default"].activation, PRESETS["weight_only_int4"].weight),
        *("aten::linear", "no kernel takes weights of int4 in groups"),
    ),
    "by row": (nn.Conv1d(5, 3, 1), "static", "per_token", "aten::conv1d", "no kernel takes a range for each row"),
    "no results": (
        *(nn.LayerNorm(4), "static", PRESETS["weight_only_int8"], "aten::layer_norm"),
        "no kernel takes floats with a weight in few bits",
    ),
    "padding": (
        Of(lambda s, x: F.pad(F.relu(s.fc(x)), (1, 1), value=0.5), {"fc": nn.Linear(4, 3)}),
        *("static", "default", "aten::constant_pad_nd", "no kernel takes its value other than zero, here 0.5"),
    ),
    "infinite": (
        Of(lambda s, x: s.fc(x).masked_fill(x > 0, torch.inf), {"fc": nn.Linear(4, 4)}),
        *("static", "default", "aten::masked_fill", "its value is infinite"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_reason_is_that_of_the_row(name: str) -> None:
    module, mode, qconfig, operator, reason = CASES[name]
    found = dict(left(module, X, mode, qconfig))
    assert reason in found[operator]


def test_a_padding_index_that_was_asked_for_is_refused() -> None:
    bag = nn.Sequential(nn.EmbeddingBag(5, 3, padding_idx=2))
    with pytest.raises(QConfigError, match=r"aten::embedding_bag of '0' .*its padding_idx, 2; make the module"):
        left(bag, IDS, qconfig="embedding_byte")
    mapping = QConfigMapping(PRESETS["embedding_byte"], modules={"0": None})
    ((operator, reason),) = left(bag, IDS, qconfig=mapping)
    assert operator == "aten::embedding_bag" and "padding_idx" in reason
    ((operator, _),) = left(bag, IDS, qconfig="default")
    assert operator == "aten::embedding_bag"


def test_moves_of_floats_and_masks_are_not_listed() -> None:
    module = Of(lambda s, x: (x.transpose(0, 1)[0].reshape(-1), x > 0, x.chunk(2)[1], x + 0.0))
    assert [operator for operator, _ in left(module, X)] == ["aten::add"]


def test_the_place_is_told() -> None:
    draft = Draft()
    held = draft.call(aten.cumsum.default, draft.linear(draft.input(2, 3), 4), 1, module=("head.sum", "m.Sum"))
    held.meta["source"] = "model.py:7"
    prepared = prepare(draft.done(held))
    (found,) = prepared.meta["left_in_float"]
    reason = "no row of the operator table stands for it"
    assert found == Leftover(held.name, "aten::cumsum", "head.sum", "model.py:7", reason)
    assert str(found) == f"aten::cumsum ({held.name}) of 'head.sum' at model.py:7 stays in float: {reason}"
    assert pickle.loads(pickle.dumps(found)) == found
