"""Captured graphs made by hand, in the normal form that the passes are promised, and the forms that they lead to."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from qlib.graph import Model, add_buffer, op_name
from qlib.passes.convert import convert
from qlib.passes.lower import lower
from qlib.passes.prepare import prepare
from qlib.qconfig import QConfig, QConfigMapping
from qlib.regions import COND, LOOP, all_models, repeat, take

aten = torch.ops.aten
QConfigs = QConfigMapping | QConfig | str | None
Block = Callable[..., Sequence[fx.Node]]


@dataclass
class Draft:
    """A graph under construction; `values` holds an example of each node's value, for shapes and dtypes."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    root: nn.Module = field(default_factory=nn.Module)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(7))

    def input(self, *shape: int, dtype: torch.dtype = torch.float32) -> fx.Node:
        return self._note(self.graph.placeholder(f"x{len(self.values)}"), torch.ones(shape, dtype=dtype), "", "")

    def constant(self, target: str, value: Tensor) -> fx.Node:
        name = add_buffer(self.root, target, value)
        return self._note(self.graph.create_node("get_attr", name), value.clone(), target.rpartition(".")[0], "")

    def draw(self, target: str, *shape: int) -> fx.Node:
        return self.constant(target, torch.randn(shape, generator=self.random) / 2)

    def call(self, target: Any, *args: Any, module: tuple[str, str] = ("", ""), kwargs: Any = None) -> fx.Node:
        node = self.graph.call_function(target, normal(target, args), kwargs or {})
        real_args, real_kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        with torch.no_grad():
            return self._note(node, target(*real_args, **real_kwargs), *module)

    def done(self, *results: fx.Node) -> Model:
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        model = Model(self.root, self.graph)
        model.graph.lint()
        return model

    def cond(self, predicate: fx.Node, operands: Sequence[fx.Node], *blocks: Block) -> tuple[fx.Node, ...]:
        """A branch; each block gets a draft of its own and what the operands are called there."""
        references, models = zip(*(self._inner(block, operands) for block in blocks), strict=True)
        node = self.graph.call_function(COND, (predicate, *references, tuple(operands)))
        values = [self.values[operand] for operand in operands]
        return self._results(node, take(bool(self.values[predicate]), *models, values))

    def loop(
        self, going: Block, body: Block, carried: Sequence[fx.Node], further: Sequence[fx.Node] = ()
    ) -> tuple[fx.Node, ...]:
        """A loop; the blocks get what is carried and then the further operands."""
        references, models = zip(*(self._inner(b, [*carried, *further]) for b in (going, body)), strict=True)
        going_graph = models[0].graph
        going_graph.output_node().args = (going_graph.output_node().args[0][0],)
        models[0].recompile()
        node = self.graph.call_function(LOOP, (*references, tuple(carried), tuple(further)))
        values = [[self.values[operand] for operand in operands] for operands in (carried, further)]
        return self._results(node, repeat(*models, *values))

    def _inner(self, block: Block, operands: Sequence[fx.Node]) -> tuple[fx.Node, Model]:
        inner = Draft(random=self.random)
        entries = [
            inner._note(inner.graph.placeholder(f"p{n}"), self.values[operand], "", "")
            for n, operand in enumerate(operands)
        ]
        inner.graph.output(tuple(block(inner, *entries)))
        model = Model(inner.root, inner.graph)
        name = f"graph_{len(self.root._modules)}"
        self.root.add_module(name, model)
        reference = self.graph.create_node("get_attr", name)
        reference.meta = {"module_path": "", "module_type": ""}
        return reference, model

    def _results(self, node: fx.Node, values: Sequence[Tensor]) -> tuple[fx.Node, ...]:
        node.meta = {"module_path": "", "module_type": "", "source": "model.py:3"}
        return tuple(
            self._note(self.graph.call_function(operator.getitem, (node, n)), value, "", "")
            for n, value in enumerate(values)
        )

    def _note(self, node: fx.Node, value: Any, path: str, kind: str) -> fx.Node:
        self.values[node] = value
        node.meta = {"module_path": path, "module_type": kind}
        if isinstance(value, Tensor):
            node.meta.update(shape=tuple(value.shape), dtype=value.dtype)
        return node

    def linear(self, x: fx.Node, outputs: int, path: str = "fc", bias: str | None = "bias") -> fx.Node:
        weight = self.draw(f"{path}.weight", outputs, x.meta["shape"][-1])
        b = self.draw(f"{path}.{bias}", outputs) if bias else None
        return self.call(aten.linear.default, x, weight, b, module=(path, "nn.Linear"))

    def conv(self, x: fx.Node, outputs: int, path: str = "conv", bias: str | None = "bias") -> fx.Node:
        """A convolution with windows of 3 and padding of 1, in as many dimensions as `x` has after two."""
        dim = len(x.meta["shape"]) - 2
        weight = self.draw(f"{path}.weight", outputs, x.meta["shape"][1], *[3] * dim)
        b = self.draw(f"{path}.{bias}", outputs) if bias else None
        target = getattr(aten, f"conv{dim}d").default
        return self.call(target, x, weight, b, [1] * dim, [1] * dim, module=(path, f"nn.Conv{dim}d"))

    def batch_norm(self, x: fx.Node, path: str = "bn", training: bool = False, affine: str = "yes") -> fx.Node:
        channels = x.meta["shape"][1]
        pair = [self.draw(f"{path}.{name}", channels) if affine == "yes" else None for name in ("weight", "bias")]
        mean = self.draw(f"{path}.running_mean", channels)
        variance = self.constant(f"{path}.running_var", torch.rand(channels, generator=self.random) + 0.5)
        rest = (training, 0.1, 1e-5, False)
        return self.call(aten.batch_norm.default, x, *pair, mean, variance, *rest, module=(path, "nn.BatchNorm"))

    def relu(self, x: fx.Node, path: str = "act") -> fx.Node:
        return self.call(aten.relu.default, x, module=(path, "nn.ReLU"))


def normal(target: Any, args: Sequence[Any]) -> tuple[Any, ...]:
    """Positional arguments filled up with the schema's defaults, as capture leaves them."""
    if not isinstance(target, torch._ops.OpOverload):
        return tuple(args)
    positional = [a for a in target._schema.arguments if not a.kwarg_only]
    return (*args, *(a.default_value for a in positional[len(args) :]))


@dataclass(frozen=True)
class Forms:
    """The forms of one graph, and the inputs that it was calibrated with."""

    prepared: fx.GraphModule
    debug: fx.GraphModule
    final: fx.GraphModule
    inputs: tuple[Tensor, ...]


def example(model: fx.GraphModule, seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs of the shapes and dtypes that a graph was built with."""
    random = torch.Generator().manual_seed(seed)
    holders = [node for node in model.graph.nodes if node.op == "placeholder"]
    return tuple(torch.randn(n.meta["shape"], generator=random).to(n.meta["dtype"]) for n in holders)


def debug_form(model: fx.GraphModule, qconfig: QConfigs = "default") -> fx.GraphModule:
    """Prepared, calibrated with its own example and converted."""
    prepared = prepare(model, qconfig)
    prepared(*example(model))
    return convert(prepared)


def forms(model: fx.GraphModule, qconfig: QConfigs = "default") -> Forms:
    """All the way from a captured graph to its final form; each form is checked to be a sound graph."""
    prepared = prepare(model, qconfig)
    inputs = example(model)
    prepared(*inputs)
    debug = convert(prepared)
    final = lower(debug)
    for form in (prepared, debug, final):
        for part in all_models(form):
            part.graph.lint()
    return Forms(prepared, debug, final, inputs)


def names(model: fx.GraphModule) -> list[str]:
    """The operators of a graph in order, by the name in torch without the namespace."""
    return [op_name(n).rpartition("::")[2] for n in model.graph.nodes if op_name(n) not in ("", "getitem")]
