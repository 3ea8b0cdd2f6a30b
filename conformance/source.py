"""A spec's module, from YAML to checked PyTorch text: nothing here runs any of it.

module: nn.Linear(30, 20)                        Leaf
module: [nn.Linear(30, 20), nn.ReLU()]           Sequence
module: {layers: {...}, forward: "def ..."}      Composite
module: {python: "package.module:factory"}       Factory
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from conformance.errors import Mistake, SpecError, nearest
from conformance.frozenmap import FrozenMap
from conformance.source_ast import Fault
from conformance.source_expression import check_expression, is_parameter
from conformance.source_forward import LayerNames, check_forward, own_name_fault
from conformance.yamltree import Fields, Items, Node, Scalar, kind, mistake_at, plain

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_MODULE_KEYS = ("layers", "forward", "python")
_EXPECTED = "expected a layer such as nn.Linear(30, 20), a list of layers, or a mapping with `layers` and `forward`"


@dataclass(frozen=True)
class Expression:
    """A checked expression that makes one layer; `tree` is ready for `compile(tree, name, "eval")`."""

    text: str
    tree: ast.Expression = field(compare=False, repr=False)


@dataclass(frozen=True)
class Function:
    """Checked methods of a module; `tree` is ready for `compile(tree, name, "exec")` and defines them all.

    `arguments` are those of `forward` without self, the first `required` of which have no default.
    """

    text: str
    tree: ast.Module = field(compare=False, repr=False)
    arguments: tuple[str, ...]
    required: int
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """One expression: a layer, a container with its layers, or an `nn.Parameter`."""

    expression: Expression

    @property
    def is_parameter(self) -> bool:
        """True where the expression makes an `nn.Parameter` rather than a module."""
        return is_parameter(self.expression.tree)


@dataclass(frozen=True)
class Sequence:
    """Modules one after the other, as `nn.Sequential` runs them."""

    items: tuple[ModuleSource, ...]


@dataclass(frozen=True)
class Composite:
    """Named layers and the `forward` that uses them."""

    layers: Mapping[str, ModuleSource]
    function: Function


@dataclass(frozen=True)
class Factory:
    """A user's own function without arguments that returns a module, as `package.module:factory`."""

    target: str


ModuleSource = Leaf | Sequence | Composite | Factory


def parse_expression(text: Scalar) -> Expression:
    """Check one layer's expression; raises SpecError with every mistake at its line and column."""
    tree = check_expression(text.text)
    if isinstance(tree, tuple):
        raise SpecError(_mistakes(text, tree))
    return Expression(text.text, tree)


def parse_forward(text: Scalar, layers: LayerNames) -> Function:
    """Check the text of `forward` and its helper methods; raises SpecError with every mistake at its place."""
    tree = check_forward(text.text, layers)
    if isinstance(tree, tuple):
        raise SpecError(_mistakes(text, tree))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    forward = next(node for node in functions if node.name == "forward")
    arguments = tuple(argument.arg for argument in forward.args.args[1:])
    required = len(arguments) - len(forward.args.defaults)
    return Function(text.text, tree, arguments, required, tuple(node.name for node in functions))


def parse_module(node: Node) -> ModuleSource:
    """Turn what stands under `module:` into its checked form; raises SpecError with every mistake in it."""
    mistakes: list[Mistake] = []
    module: ModuleSource | None
    if isinstance(node, Fields) and node.key("python"):
        module = _factory(node, mistakes)
    else:
        module = _module(node, mistakes)
        if isinstance(module, Leaf) and module.is_parameter:
            mistakes.append(mistake_at(node, "expected a layer, found a parameter: name it in `layers`"))
    if module is None or mistakes:
        raise SpecError(mistakes)
    return module


def _module(node: Node, mistakes: list[Mistake]) -> ModuleSource | None:
    if isinstance(node, Scalar) and isinstance(node.value, str):
        try:
            return Leaf(parse_expression(node))
        except SpecError as error:
            mistakes.extend(error.mistakes)
    elif isinstance(node, Items):
        return _sequence(node, mistakes)
    elif isinstance(node, Fields):
        return _composite(node, mistakes)
    else:
        mistakes.append(mistake_at(node, f"{_EXPECTED}, found {kind(plain(node))}"))
    return None


def _sequence(node: Items, mistakes: list[Mistake]) -> Sequence | None:
    items = [_module(item, mistakes) for item in node.items]
    for item, written in zip(items, node.items, strict=True):
        if isinstance(item, Leaf) and item.is_parameter:
            mistakes.append(mistake_at(written, "expected a layer, found a parameter: use `layers` and `forward`"))
    if not items:
        mistakes.append(mistake_at(node, "expected at least one layer, found an empty list"))
    modules = tuple(item for item in items if item is not None)
    return Sequence(modules) if len(modules) == len(items) else None


def _composite(node: Fields, mistakes: list[Mistake]) -> Composite | None:
    for key, _ in node.entries:
        if key.text not in _MODULE_KEYS[:2]:
            hint = nearest(key.text, _MODULE_KEYS)
            mistakes.append(mistake_at(key, f"unknown key {key.text!r}: expected `layers` and `forward`.{hint}"))
    written, forward = node.get("layers"), node.get("forward")
    if written is not None and not isinstance(written, Fields):
        found = kind(plain(written))
        mistakes.append(mistake_at(written, f"expected a mapping of names to layers, found {found}"))
    entries = written.entries if isinstance(written, Fields) else ()
    layers = {key.text: _module(value, mistakes) for key, value in entries}
    for key, _ in entries:
        if fault := own_name_fault(key.text):
            mistakes.append(mistake_at(key, fault))
    if not isinstance(forward, Scalar) or not isinstance(forward.value, str):
        message = "expected the text of `forward`: write `forward: |` and `def forward(self, x):` below it"
        mistakes.append(mistake_at(forward or node, message))
        return None
    names = LayerNames(FrozenMap({name: _names(layer) for name, layer in layers.items()}))
    try:
        function = parse_forward(forward, names)
    except SpecError as error:
        mistakes.extend(error.mistakes)
        return None
    return Composite(FrozenMap({name: layer for name, layer in layers.items() if layer is not None}), function)


def _names(layer: ModuleSource | None) -> LayerNames:
    """What may follow a layer's name; a list's items are its indices, as in `nn.Sequential`."""
    if isinstance(layer, Sequence):
        return LayerNames(FrozenMap({str(index): _names(item) for index, item in enumerate(layer.items)}))
    if not isinstance(layer, Composite):
        return LayerNames()
    helpers = {name: LayerNames() for name in layer.function.methods if name != "forward"}
    return LayerNames(FrozenMap({name: _names(inner) for name, inner in layer.layers.items()} | helpers))


def _factory(node: Fields, mistakes: list[Mistake]) -> Factory | None:
    target = node.get("python")
    for key, _ in node.entries:
        if key.text != "python":
            mistakes.append(mistake_at(key, f"`python` stands alone: remove {key.text!r}"))
    if isinstance(target, Scalar) and isinstance(target.value, str) and _TARGET.fullmatch(target.value):
        return Factory(target.value)
    assert target is not None
    mistakes.append(mistake_at(target, f"expected 'package.module:factory', found {kind(plain(target))}"))
    return None


def _mistakes(text: Scalar, faults: tuple[Fault, ...]) -> list[Mistake]:
    return [mistake_at(text, fault.message, fault.offset) for fault in faults]
