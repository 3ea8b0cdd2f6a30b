"""Models whose graphs are made when they are called, since only a call says what shapes its inputs have."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from qlib import executed
from qlib.errors import CaptureError, ConversionError
from qlib.frontends.capture import capture
from qlib.observers import OBSERVERS, Follower
from qlib.printed import graph_text
from qlib.signature import kind, signature

Step = Callable[[fx.GraphModule], fx.GraphModule]

# Boundary operators as TorchScript graphs name them; all others have the same name there.
_TORCHSCRIPT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "quantized::quantize_per_tensor": "aten::quantize_per_tensor",
        "quantized::dequantize_per_tensor": "aten::dequantize",
        "quantized::dequantize_per_channel": "aten::dequantize",
        "quantized::choose_qparams": "aten::_choose_qparams_per_tensor",
    }
)


@dataclass(frozen=True)
class _Archive:
    """A ScriptModule as `torch.jit.save` writes it, since it can't be pickled."""

    data: bytes


class Deferred(nn.Module):
    """A model that makes its graph at its first call, and another one for inputs of other shapes or types.

    The graphs, in `graphs` by the signature of their inputs, share their observers. `source` is the float module, or
    the deferred model whose graphs the `steps` go on from. Attributes and methods of the float module named in
    `preserved` are found here too; methods run in float. Until the first call there is no graph to look at.
    """

    def __init__(self, source: nn.Module, steps: tuple[Step, ...], preserved: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.__dict__["source"] = source  # not a submodule: the state is that of the graphs
        self.steps = steps
        self.preserved = preserved
        self.graphs = nn.ModuleDict()
        self.train(source.training)
        for name in preserved:
            if not hasattr(self.float_module, name):
                close = get_close_matches(name, dir(self.float_module), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConversionError(f"expected names of the model's attributes to preserve, found {name!r}{hint}")

    @property
    def float_module(self) -> nn.Module:
        """The float module that all forms come from."""
        source: nn.Module = self.__dict__["source"]
        return source.float_module if isinstance(source, Deferred) else source

    def forward(self, *inputs: Any) -> Any:
        """What the model returns for `inputs`; captures it where it has no graph for inputs of this kind."""
        return self.graph_for(inputs)(*inputs)

    def graph_for(self, inputs: tuple[Any, ...]) -> fx.GraphModule:
        """The graph module for inputs of this kind, made where there is none; raises the errors of the steps."""
        key = signature(inputs)
        if key not in self.graphs:
            source = self.__dict__["source"]
            made = source.graph_for(inputs) if isinstance(source, Deferred) else _captured(source, inputs)
            self._add(key, made)
        found = self.graphs[key]
        assert isinstance(found, fx.GraphModule)
        return found

    def follow(self) -> None:
        """Make a graph for every kind of inputs that the deferred source has been called with."""
        for key, graph in self.__dict__["source"].graphs.items():
            self._add(key, graph)

    def _add(self, key: str, graph: fx.GraphModule) -> None:
        for step in self.steps:
            graph = step(graph)
        if len(self.graphs):
            _share_observers(self.model, graph, key)
        graph.train(self.training)
        self.graphs[key] = graph

    @property
    def model(self) -> fx.GraphModule:
        """The graph module made first; raises CaptureError before the first call."""
        first = next(iter(self.graphs.values()), None)
        if not isinstance(first, fx.GraphModule):
            raise CaptureError("this model has no graph yet: call it once on an example, then look at its graph")
        return first

    @property
    def graph(self) -> str:
        """The graph made first as text, one line for each node, operators by canonical name."""
        named = {node: _TORCHSCRIPT_NAMES.get(name, name) for node, name in executed.named(self.model)}
        return graph_text(self.model, named)

    @property
    def code(self) -> str:
        """The same as `graph`."""
        return self.graph

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("preserved", ()):
            return getattr(self.float_module, name)
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.__dict__["source"], torch.jit.ScriptModule):
            file = io.BytesIO()
            torch.jit.save(self.__dict__["source"], file)
            state["source"] = _Archive(file.getvalue())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(state["source"], _Archive):
            self.__dict__["source"] = torch.jit.load(io.BytesIO(state["source"].data))


def _captured(source: nn.Module, inputs: tuple[Any, ...]) -> fx.GraphModule:
    return capture(source, inputs, "script" if _can_be_scripted(source) else "trace")


def _can_be_scripted(module: nn.Module) -> bool:
    try:
        torch.jit.script(module)
    except (RuntimeError, OSError, TypeError, NotImplementedError, torch.jit.frontend.FrontendError):
        return False
    return True


def _share_observers(first: fx.GraphModule, graph: fx.GraphModule, key: str) -> None:
    """Put the observers of the graph made first into another one, which must call the same in the same order."""
    observers, others = _observers(first), _observers(graph)
    if not observers and not others:
        return
    if observers.keys() != others.keys() or [(n.op, n.target) for n in first.graph.nodes] != [
        (n.op, n.target) for n in graph.graph.nodes
    ]:
        metas = [node.meta for node in first.graph.find_nodes(op="placeholder")]
        shapes = ", ".join(kind(meta["dtype"], meta["shape"]) for meta in metas)
        raise CaptureError(
            f"the model runs other operators on {key} than on {shapes}, so that they can't share observers: "
            "calibrate and run it on inputs of one shape"
        )
    for name, observer in observers.items():
        graph.set_submodule(name, observer)


def _observers(graph: fx.GraphModule) -> dict[str, nn.Module]:
    """The observers of a graph, those in branches and loops included, by their names."""
    kinds: tuple[type[nn.Module], ...] = (*OBSERVERS.values(), Follower)
    return {name: part for name, part in graph.named_modules(remove_duplicate=False) if isinstance(part, kinds)}
