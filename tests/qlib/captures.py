"""What the tests of capture share: capture a module by every method and compare with eager execution."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from qlib.frontends.capture import capture
from qlib.graph import op_name

BOTH = ("export", "trace")
ALL = pytest.mark.parametrize("method", BOTH)


class Of(nn.Module):
    """A module from a function, with submodules under the names that the function uses."""

    def __init__(self, function: Any, modules: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.function = function
        for name, value in (modules or {}).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def spelled(graph: fx.Graph) -> list[Any]:
    """The graph with its nodes numbered, so that graphs can be compared."""
    number = {node: f"%{position}" for position, node in enumerate(graph.nodes)}

    def plain(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: number[node])

    rows = []
    for node in graph.nodes:
        target = "" if node.op == "output" else str(node.target)
        keys = ("module_path", "module_type", "shape", "dtype")
        rows.append(
            (node.op, target, str(plain(node.args)), str(plain(node.kwargs)), *(node.meta.get(k) for k in keys))
        )
    return rows


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert found.dtype == expected.dtype
    elif isinstance(expected, tuple | list):
        assert isinstance(found, tuple if isinstance(expected, tuple) else list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    else:
        assert found == expected


def fresh(inputs: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for value in inputs:
        if value.is_floating_point():
            made.append(torch.empty_like(value).copy_(torch.randn(value.shape, generator=generator)))
        else:
            made.append(value.clone())
    return tuple(made)


def check(module: nn.Module, inputs: tuple[Tensor, ...], methods: tuple[str, ...] = BOTH) -> list[fx.GraphModule]:
    """Capture by every method; graphs agree with each other and with the module, state and inputs included."""
    models = []
    before = copy.deepcopy(module.state_dict())
    given = tuple(value.clone() for value in inputs)
    for method in methods:
        model = capture(module, inputs, method)
        model.graph.lint()
        models.append(model)
        assert_normal(model.graph)
        assert_same(dict(module.state_dict()), dict(before))
        assert_same(inputs, given)
        eager = copy.deepcopy(module)
        for seed in range(2):
            ours, theirs = fresh(inputs, seed), fresh(inputs, seed)
            if seed == 0:
                ours, theirs = tuple(v.clone() for v in inputs), tuple(v.clone() for v in inputs)
            with torch.no_grad():
                expected, found = eager(*theirs), model(*ours)
            assert_same(found, plain(expected))
            assert_same(ours, theirs)
        state = dict(model.named_buffers())
        for name, value in eager.named_buffers():
            if name in state:
                assert_same(state[name], value)
    for model in models[1:]:
        assert spelled(model.graph) == spelled(models[0].graph)
    return models


def plain(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(plain(item) for item in output)
    return {key: plain(value) for key, value in output.items()} if isinstance(output, dict) else output


def assert_normal(graph: fx.Graph) -> None:
    """Only ATen operators, arguments in normal form, metadata complete, and changes only at the end."""
    targets = [node.target for node in graph.nodes if node.op == "get_attr"]
    assert len(targets) == len(set(targets))
    changed = False
    for node in graph.nodes:
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
        assert isinstance(node.meta["module_path"], str)
        assert isinstance(node.meta["module_type"], str)
        if node.op != "call_function":
            continue
        if not isinstance(node.target, OpOverload):
            assert node.target.__name__ == "getitem"
            continue
        schema = node.target._schema
        changed = changed or schema.is_mutable
        assert schema.is_mutable == changed
        assert len(node.args) == sum(not argument.kwarg_only for argument in schema.arguments)
        assert all(argument.kwarg_only for argument in schema.arguments if argument.name in node.kwargs)


def ops(model: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in model.graph.nodes if isinstance(node.target, OpOverload)]


def image(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(3)),)


LINEAR = (torch.randn(3, 5, generator=torch.Generator().manual_seed(2)),)


def linears() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()


def exported(module: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> fx.GraphModule:
    return torch.export.export(module, inputs, **options).module()  # type: ignore[return-value]


def names(model: fx.GraphModule) -> list[str]:
    return [op_name(node).partition("::")[2] for node in model.graph.nodes if "::" in op_name(node)]
