"""Capture: a module as one functional graph of ATen operators."""

from __future__ import annotations

import inspect
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from qlib.errors import CaptureError
from qlib.frontends.exported import example_of, export, export_strict, read_module
from qlib.frontends.functionalize import functionalize
from qlib.frontends.memory import Program
from qlib.frontends.normalize import fill_arguments, normalize
from qlib.frontends.operands import tidy
from qlib.frontends.script import script
from qlib.frontends.torchscript import trace
from qlib.frontends.untouched import private_copy
from qlib.frontends.views import separate_written
from qlib.graph import Model
from qlib.regions import COND, LOOP, region_of

Method = Callable[[nn.Module, tuple[Tensor, ...], Callable[[Tensor], str]], fx.Graph]

# Where code lives that is not the user's: torch, this library, Python itself.
_NOT_THE_USERS = (
    torch.__path__[0],
    str(Path(__file__).parents[1]),
    inspect.__file__.rpartition("/")[0] + "/inspect",
    "<",
)

# What TorchScript puts into the name of a class.
_MANGLED = re.compile(r"^__torch__\.|___torch_mangle_\d+\.")

# How a module's graph can be had, by name.
METHODS: Mapping[str, Method] = MappingProxyType(
    {"export": export, "export-strict": export_strict, "trace": trace, "script": script}
)

# What the graphs of a branch and of a loop are called, before a number.
GRAPHS: Mapping[Any, tuple[str, str]] = MappingProxyType({COND: ("true", "false"), LOOP: ("cond", "body")})


class _Names:
    """The tensors and submodules of a module under the first name that each has; other tensors are constants."""

    def __init__(self, module: nn.Module) -> None:
        self.state: dict[str, Tensor] = {}
        self.constants: set[str] = set()
        self._tensors: dict[int, str] = {}
        self._memory: dict[tuple[Any, ...], str] = {}
        self._modules: dict[int, str] = {}
        self._root = module
        for path, submodule in module.named_modules():
            self._modules[id(submodule)] = path
            plain = {name: value for name, value in vars(submodule).items() if isinstance(value, Tensor)}
            for name, value in (*submodule._parameters.items(), *submodule._buffers.items(), *plain.items()):
                if value is not None:
                    full = f"{path}.{name}" if path else name
                    self._tensors.setdefault(id(value), full)
                    self._memory.setdefault(_memory(value), full)

    def of(self, tensor: Tensor) -> str:
        """The name under which a tensor is kept; one that is no attribute of the module gets a name of its own."""
        name = self._tensors.get(id(tensor)) or self._memory.get(_memory(tensor))
        if name is None:
            name = f"constant.{len(self.constants)}"
            self.constants.add(name)
        self.state.setdefault(name, tensor)
        self._tensors[id(tensor)] = name
        return name

    def module(self, path: str) -> tuple[str, str]:
        """The first path of the submodule at `path`, and its type as rules name it; else of its nearest owner."""
        submodule: Any = self._root
        for part in path.split(".") if path else ():
            inner = getattr(submodule, part, None)
            if not isinstance(inner, nn.Module):
                break
            submodule = inner
        return self._modules.get(id(submodule), ""), module_type(submodule)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.data_ptr() or id(tensor), tensor.dtype, tensor.shape, tensor.stride())


def module_type(module: nn.Module) -> str:
    """A module's class as rules name it: "nn.Linear" for the classes of torch, the qualified name for others.

    A compiled module has the class that it was compiled from.
    """
    kind = type(module)
    full = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(module, torch.jit.ScriptModule):
        full = _MANGLED.sub("", module._c._type().qualified_name())
    return f"nn.{full.rpartition('.')[2]}" if full.startswith("torch.nn.") else full


def capture(module: nn.Module, inputs: tuple[Tensor, ...], method: str = "export") -> fx.GraphModule:
    """Turn a module into one functional graph of ATen operators, in the normal form of `qlib.frontends.normalize`.

    `inputs` are example inputs, one tensor for each positional argument; the graph holds for their shapes, types and
    layout. `method` is a key of `METHODS`; what is a ScriptModule already is read as one by `trace` too. Conditions and
    loops on the data are kept as graphs within the graph by `script`, and by `export` where the module says them as
    `torch.cond` and `while_loop`; `trace` takes the example's way. Parameters share memory with the module's, buffers
    are copies, and the module stays as it is. Nodes carry `module_path` and `module_type` in their metadata, `shape`
    and `dtype` where they make a tensor, and operators `source`, which is empty where the user's line is unknown.
    ``meta["modules"]`` holds the type of every submodule by its path. Inputs and buffers that the module changes are
    changed by ``aten.copy_`` at the end.
    Raises CaptureError where the module can't be captured that way.
    """
    if method not in METHODS:
        close = get_close_matches(method, METHODS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise CaptureError(f"no capture method is named {method!r}; expected one of {', '.join(METHODS)}.{hint}")
    _check_examples(inputs)
    _check_norms(module)
    if isinstance(module, torch.jit._trace.TopLevelTracedModule):  # whose parts hide their programs
        module = torch.jit._recursive.wrap_cpp_module(module._c)
    names = _Names(module)
    read = METHODS["script" if method == "trace" and isinstance(module, torch.jit.ScriptModule) else method]
    with _quiet():
        try:
            graph = read(module, tuple(private_copy(value) for value in inputs), names.of)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(_explain(error, method)) from error
        _rename_arguments(graph, module)
        return _finish(graph, module, names, inputs)


def captured(exported: fx.GraphModule) -> fx.GraphModule:
    """What `capture` would give for the module behind ``torch.export.export(module, inputs).module()``.

    Parameters share memory with those of `exported`, which stays as it is. Raises CaptureError as `capture` does.
    """
    names = _Names(exported)
    with _quiet():
        return _finish(read_module(exported, names.of), exported, names, example_of(exported))


def _finish(graph: fx.Graph, module: nn.Module, names: _Names, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """Bring a graph as a front-end delivers it into normal form, and give it its tensors."""
    fill_arguments(graph)
    graph = functionalize(Program(graph, names.state, frozenset(names.constants)), inputs)
    normalize(graph)
    separate_written(graph)
    _number_constants(graph, names)
    writes = graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)
    tidy(graph, frozenset(str(node.args[0].target) for node in writes))
    _name_modules(graph, names, {})
    return _assemble(graph, module, names)


def _check_examples(inputs: tuple[Tensor, ...]) -> None:
    if not isinstance(inputs, tuple):
        raise CaptureError(
            f"expected a tuple of example inputs, found {type(inputs).__name__}; write (x,) for one tensor"
        )
    for position, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"input {position}: expected a tensor, found {type(value).__name__}; give it in the module"
            )


def _check_norms(module: nn.Module) -> None:
    """A cumulative average moves by a step that follows from the count of batches, which a graph has no place for."""
    for path, part in module.named_modules():
        counts = getattr(part, "num_batches_tracked", None) is not None
        if counts and part.training and getattr(part, "momentum", 0.0) is None:
            raise CaptureError(
                f"expected a batch norm with a number as momentum in training mode, found None at {path!r}: set it, or "
                "capture the module in evaluation mode"
            )


# ---------------------------------------------------------------------------------------- around the run of the module


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, no logs, no gradients, no fused attention, which hides its operators, and the random state kept."""
    fused = torch.backends.mha.get_fastpath_enabled()
    generator = torch.get_rng_state()
    disabled = logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fused)
        torch.set_rng_state(generator)


def _explain(error: Exception, method: str) -> str:
    """What torch said, where in the user's code, and what else to try, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A line that ends with a colon says only where the next one applies.
    told = next((n for n, line in enumerate(lines) if not line.endswith(":")), 0)
    said = " ".join(lines[: told + 1]) if lines else "no message"
    place = ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_NOT_THE_USERS):
            place = f" (at {frame.filename.rpartition('/')[2]}:{frame.lineno})"
            break
    others = " or ".join(repr(name) for name in METHODS if name != method)
    return (
        f"torch can't capture the module by {method!r}: {type(error).__name__}: {said}{place}; try the method {others}"
    )


# ------------------------------------------------------------------------------------------------- finishing the graph


def _rename_arguments(graph: fx.Graph, module: nn.Module) -> None:
    """Call the placeholders what the module's forward calls them."""
    named, rest = _argument_names(module)
    for position, node in enumerate(graph.find_nodes(op="placeholder")):
        node.target = named[position] if position < len(named) else f"{rest}_{position - len(named)}"


def _argument_names(module: nn.Module) -> tuple[list[str], str]:
    """The positional arguments of a module's forward, and what those are called that come after them."""
    if isinstance(module, torch.jit.ScriptModule):
        schema = getattr(module, "forward", None)
        return ([] if schema is None else [argument.name for argument in schema.schema.arguments[1:]]), "input"
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return named, next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")


def _name_modules(graph: fx.Graph, names: _Names, known: dict[str, tuple[str, str]]) -> None:
    """Write the first path of each node's module and its type into the metadata; `known` are those found so far."""
    for node in graph.nodes:
        if "graph" in node.meta:
            _name_modules(node.meta["graph"], names, known)
        path = node.meta.setdefault("module_path", "")
        if path not in known:
            known[path] = names.module(path)
        node.meta["module_path"], node.meta["module_type"] = known[path]


def _assemble(graph: fx.Graph, module: nn.Module, names: _Names) -> fx.GraphModule:
    """The graph with its tensors: parameters over the same memory, the rest as copies."""
    graph.output_node().args = (_plain(graph.output_node().args[0]),)
    taken = {name.partition(".")[0] for name in names.state}
    parts = _Parts(names.state, {}, (name for name in map(str, count()) if not _is_taken(name, taken)))
    model = _model(graph, parts, type(module).__name__)
    model.train(module.training)
    model.meta["modules"] = {
        path: module_type(submodule) for path, submodule in module.named_modules(remove_duplicate=False)
    }
    return model


@dataclass(frozen=True)
class _Parts:
    """What models are put together from: the module's tensors, their copies so far, and free numbers for graphs."""

    state: Mapping[str, Tensor]
    copies: dict[str, Tensor]
    numbers: Iterator[str]


def _is_taken(number: str, taken: set[str]) -> bool:
    return any(f"{kind}_graph_{number}" in taken for kinds in GRAPHS.values() for kind in kinds)


def _model(graph: fx.Graph, parts: _Parts, name: str) -> Model:
    """The model of a graph and of those within it, whose tensors of one name are one."""
    _place_attributes(graph)
    held: dict[str, Any] = {}
    for node in graph.nodes:
        region = region_of(node, lambda reference: reference.meta["graph"])
        if region is None:
            continue
        number = next(parts.numbers)
        for kind, reference in zip(GRAPHS[node.target], region.references, strict=True):
            reference.target = f"{kind}_graph_{number}"
            held[reference.target] = _model(reference.meta.pop("graph"), parts, reference.target)
    for node in graph.find_nodes(op="get_attr"):
        target = str(node.target)
        if target not in held:
            held[target] = parts.copies.setdefault(target, _copy(parts.state[target]))
    return Model(held, graph, name)


def _copy(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
    return private_copy(tensor)


def _number_constants(graph: fx.Graph, names: _Names) -> None:
    """Number the constants by their first use, equal ones alike, so that the capture methods agree on their names."""
    kept: list[tuple[fx.Node, Tensor]] = []
    for node in graph.find_nodes(op="get_attr"):
        if str(node.target) not in names.constants:
            continue
        tensor = names.state[str(node.target)]
        twin = next((n for n, t in kept if t.dtype == tensor.dtype and torch.equal(t, tensor)), None)
        if twin is not None:
            node.replace_all_uses_with(twin)
            graph.erase_node(node)
        else:
            kept.append((node, tensor))
    free = (name for name in (f"constant_{number}" for number in count()) if name not in names.state)
    for (node, tensor), name in zip(kept, free, strict=False):
        node.target = name
        node.meta["module_path"] = ""
        names.state[name] = tensor


def _place_attributes(graph: fx.Graph) -> None:
    """Put each `get_attr` node right before its first user, so that the capture methods agree on their order."""
    placed: set[fx.Node] = set()
    for node in list(graph.nodes):
        for used in node.all_input_nodes:
            if used.op == "get_attr" and used not in placed:
                placed.add(used)
                node.prepend(used)


def _plain(output: Any) -> Any:
    """The module's output in tuples, lists and dicts, which are all that a graph can return."""
    if isinstance(output, tuple):
        return tuple(_plain(item) for item in output)
    if isinstance(output, list):
        return [_plain(item) for item in output]
    if isinstance(output, Mapping):
        return {key: _plain(value) for key, value in output.items()}
    if output is None or isinstance(output, fx.Node | int | float | str | bool):
        return output
    raise CaptureError(
        f"expected tensors in tuples, lists and dicts as output, found {type(output).__name__}; return a dict"
    )
