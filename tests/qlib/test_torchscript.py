from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qlib.errors import CaptureError
from qlib.frontends.torchscript import source_line, trace


class Sizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        n = x.size(0) * 2 + x.dim()
        y = self.fc(x).reshape(x.shape[0], -1, 1)
        return {"y": y * n + x.numel(), "rest": [y / 2, None]}


def traced(module: nn.Module, *inputs: Tensor) -> tuple[fx.Graph, list[Tensor]]:
    kept: list[Tensor] = []

    def name_of(tensor: Tensor) -> str:
        kept.append(tensor)
        return f"t{len(kept) - 1}"

    with torch.no_grad():
        return trace(module.eval(), inputs, name_of), kept


def calls(graph: fx.Graph) -> list[tuple[str, tuple[Any, ...]]]:
    return [(str(node.target), node.args[1:]) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.filterwarnings("ignore")
def test_sizes_become_numbers() -> None:
    graph, kept = traced(Sizes(), torch.ones(3, 4))
    linear, reshape, mul, add, div = calls(graph)
    assert linear[0] == "aten.linear.default"
    assert len(kept) == 2
    assert reshape == ("aten.reshape.default", ([3, -1, 1],))
    assert (mul[0], mul[1]) == ("aten.mul.Tensor", (8,))
    assert (add[0], add[1]) == ("aten.add.Tensor", (12,))
    assert div == ("aten.div.Tensor", (2,))


@pytest.mark.filterwarnings("ignore")
def test_the_output_keeps_its_structure() -> None:
    graph, _ = traced(Sizes(), torch.ones(3, 4))
    output = graph.output_node().args[0]
    assert list(output) == ["y", "rest"]
    assert output["rest"][1] is None


@pytest.mark.filterwarnings("ignore")
def test_modules_and_lines_are_known() -> None:
    graph, _ = traced(Sizes(), torch.ones(3, 4))
    linear = graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[0]
    assert linear.meta["module_path"] == "fc"
    assert linear.meta["source"] == f"test_torchscript.py:{Sizes.forward.__code__.co_firstlineno + 2}"


@pytest.mark.filterwarnings("ignore")
def test_scripted_loops_are_refused_with_advice() -> None:
    def rounds(x: Tensor) -> Tensor:
        for _ in range(x.size(0)):
            x = x + 1
        return x

    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rounds = torch.jit.script(rounds)

        def forward(self, x: Tensor) -> Tensor:
            return self.rounds(x)  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match=r"prim::Loop.*unroll the loop"):
        traced(Looping(), torch.ones(2))


def test_source_line_skips_torch() -> None:
    stack = (
        f"{torch.__path__[0]}/nn/linear.py(3): forward\n/home/me/model.py(12): forward\n/home/me/run.py(3): <module>\n"
    )
    assert source_line(stack) == "model.py:12"
    assert source_line("") == ""
