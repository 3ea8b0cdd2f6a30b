"""Checks the text of `forward` against a closed subset of Python, node by node, without running it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from conformance.errors import nearest
from conformance.frozenmap import FrozenMap
from conformance.source_ast import MAX_EXPONENT, MAX_INTEGER, Fault, fold, offset_of, read
from conformance.source_expression import MAX_ELEMENTS, elements
from conformance.source_tables import (
    ANNOTATIONS,
    BUILTINS,
    DTYPES,
    FUNCTIONAL,
    LAYER_ATTRIBUTES,
    MATH,
    MODULE_ATTRIBUTES,
    NAMESPACE_NAMES,
    SIZING,
    TENSOR_ATTRIBUTES,
    TENSOR_METHODS,
    TORCH_CONSTANTS,
    TORCH_FUNCTIONS,
)

MAX_ITERATIONS = 4096
MAX_CHARACTERS = 200

Faults = Iterator[tuple[ast.AST, str]]


@dataclass(frozen=True)
class LayerNames:
    """What may be said after `self.` in a module, and after each of those in turn.

    A layer's own names must never widen what may be read from a tensor, hence a tree and not a set.
    """

    children: FrozenMap[str, LayerNames] = field(default_factory=FrozenMap)


@dataclass(frozen=True)
class _Scope:
    layers: LayerNames
    methods: frozenset[str]
    variables: frozenset[str]


_CALLED = {"torch": TORCH_FUNCTIONS, "F": FUNCTIONAL, "math": MATH, "nn": frozenset[str]()}
_READ = {"torch": DTYPES | TORCH_CONSTANTS, "F": frozenset[str](), "math": MATH, "nn": frozenset[str]()}
_INSTEAD = {
    ("torch", "nn"): "write F.<name> for functions, and name modules under `layers`",
    ("nn", "functional"): "write F.<name> for functions",
}
_REFUSED: dict[type[ast.AST], str] = {
    ast.Starred: "star-arguments are not allowed: write the values out",
    ast.Lambda: "lambda is not allowed: write a helper method `def name(self, ...)`",
    ast.JoinedStr: "f-strings are not allowed",
    ast.NamedExpr: "`:=` is not allowed: assign on a line of its own",
    ast.Import: "import is not allowed: torch, F and math are there already",
    ast.ImportFrom: "import is not allowed: torch, F and math are there already",
    ast.FunctionDef: "a function inside a function is not allowed: write a helper method",
    ast.Raise: "raise is not allowed: use assert",
    ast.GeneratorExp: "generators are not allowed: use a list comprehension",
}
# Nodes that are as harmless as their children.
_WALKED = (
    *(ast.Return, ast.If, ast.For, ast.While, ast.Assert, ast.Pass, ast.Break, ast.Continue),
    *(ast.BoolOp, ast.IfExp, ast.Compare, ast.Tuple, ast.List, ast.Dict, ast.Slice, ast.ListComp, ast.UnaryOp),
    *(ast.expr_context, ast.boolop, ast.unaryop, ast.cmpop, ast.operator, ast.Subscript),
)
_OPERATORS = (
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult),
    *(ast.BitAnd, ast.BitOr, ast.BitXor, ast.RShift),
)


@lru_cache(maxsize=4096)
def check_forward(text: str, layers: LayerNames) -> ast.Module | tuple[Fault, ...]:
    """Return the checked tree of `def forward(self, ...)` and its helper methods, or everything wrong with them."""
    tree = read(text, "exec")
    if isinstance(tree, Fault):
        return (tree,)
    assert isinstance(tree, ast.Module)
    found = [*_definitions(tree), *_bodies(tree, layers)]
    return tuple(Fault(offset_of(text, node), message) for node, message in found) or tree


def _definitions(tree: ast.Module) -> Faults:
    seen: set[str] = set()
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            yield node, "expected only `def forward(self, ...)` and helper methods here"
            continue
        if node.name in seen:
            yield node, f"method {node.name!r} is defined twice: remove one"
        elif node.name != "forward":
            yield from _own_name(node, node.name)
        seen.add(node.name)
    if "forward" not in seen:
        first = tree.body[0] if tree.body else tree
        yield first, f"expected `def forward(self, ...)`, found no such method.{nearest('forward', seen)}"


def own_name_fault(name: str) -> str | None:
    """Say why a layer or a helper method can't have a name, or None where it can."""
    if not name.isidentifier() or not name.isascii() or name.startswith("_") or "__" in name:
        return f"expected a name of letters, digits and single underscores, found {name!r}"
    if name in MODULE_ATTRIBUTES or name in NAMESPACE_NAMES or name == "self":
        return f"the name {name!r} is taken by PyTorch or Python: choose another"
    return None


def _own_name(node: ast.AST, name: str) -> Faults:
    if fault := own_name_fault(name):
        yield node, fault


def _bodies(tree: ast.Module, layers: LayerNames) -> Faults:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    methods = frozenset(node.name for node in functions) - {"forward"}
    for node in functions:
        if node.name in layers.children:
            yield node, f"{node.name!r} is a layer already: rename the method"
        yield from _signature(node)
        stored = {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
        arguments = {argument.arg for argument in node.args.args[1:]}
        scope = _Scope(layers, methods, frozenset(stored | arguments))
        for index, statement in enumerate(node.body):
            if index or not _is_docstring(statement):
                yield from _check(scope, statement)
        returns = any(isinstance(part, ast.Return) and part.value for part in ast.walk(node))
        if node.name == "forward" and not returns:
            yield node, "expected `forward` to return something, found no `return <value>`"


def _signature(node: ast.FunctionDef) -> Faults:
    for decorator in node.decorator_list:
        yield decorator, "decorators are not allowed"
    arguments = node.args
    if arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg:
        yield node, "expected plain arguments `(self, x, y=1)`, found `/`, `*` or `**`"
    if getattr(node, "type_params", None):
        yield node, "type parameters are not allowed"
    if not arguments.args or arguments.args[0].arg != "self":
        yield node, "expected `self` as the first argument"
    for argument in arguments.args[1:]:
        yield from _stored_name(argument, argument.arg)
        yield from _annotation(argument.annotation)
    yield from _annotation(node.returns)
    for default in arguments.defaults:
        if fold(default) is None and not (isinstance(default, ast.Constant) and _plain_constant(default)):
            yield default, f"expected a constant as the default, found {ast.unparse(default)[:60]!r}"


def _annotation(node: ast.expr | None) -> Faults:
    if node is None or (isinstance(node, ast.Constant) and node.value in {None, ...}):
        return
    if isinstance(node, ast.Name) and node.id in ANNOTATIONS | {"list", "tuple", "dict"}:
        return
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.Tensor":
        return
    if isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in (node.value, *parts):
            yield from _annotation(part)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _annotation(node.left)
        yield from _annotation(node.right)
    else:
        found = ast.unparse(node)[:60]
        yield node, f"unknown annotation {found!r}.{nearest(found, ANNOTATIONS) or ' Expected e.g. torch.Tensor.'}"


def _check(scope: _Scope, node: ast.AST) -> Faults:
    rule = _RULES.get(type(node))
    if rule:
        yield from rule(scope, node)
    elif isinstance(node, _WALKED):
        for child in ast.iter_child_nodes(node):
            yield from _check(scope, child)
    else:
        yield node, _REFUSED.get(type(node), f"{type(node).__name__} is not allowed in a spec")


def _expression_statement(scope: _Scope, node: ast.Expr) -> Faults:
    if not isinstance(node.value, ast.Call):
        yield node, "expected a call, an assignment or `return`: this line has no effect"
    yield from _check(scope, node.value)


def _assignment(scope: _Scope, node: ast.Assign | ast.AnnAssign) -> Faults:
    """What may be assigned to: names, tuples of them, and items of a list or tensor."""
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        yield from _check(scope, target)
    if isinstance(node, ast.AnnAssign):
        yield from _annotation(node.annotation)
    if node.value is not None:
        yield from _check(scope, node.value)


def _augmented(scope: _Scope, node: ast.AugAssign) -> Faults:
    yield from _operation(scope, ast.copy_location(ast.BinOp(node.target, node.op, node.value), node))


def _stored_name(node: ast.AST, name: str) -> Faults:
    if "__" in name:
        yield node, f"names with two underscores are not allowed: rename {name!r}"
    elif name == "self" or name in NAMESPACE_NAMES:
        yield node, f"the name {name!r} is taken by PyTorch or Python: choose another"


def _name(scope: _Scope, node: ast.Name) -> Faults:
    if isinstance(node.ctx, ast.Store):
        yield from _stored_name(node, node.id)
    elif node.id == "self" or node.id in _READ:
        yield node, f"expected `{node.id}.<name>`, found {node.id!r} alone"
    elif node.id in BUILTINS:
        yield node, f"{node.id!r} may only be called"
    elif node.id not in scope.variables:
        known = scope.variables | BUILTINS | _READ.keys()
        own = f" Did you mean 'self.{node.id}'?" if node.id in scope.layers.children else ""
        yield node, f"unknown name {node.id!r}.{own or nearest(node.id, known)}"


def _attribute(scope: _Scope, node: ast.Attribute) -> Faults:
    yield from _member(scope, node, _READ, TENSOR_ATTRIBUTES | LAYER_ATTRIBUTES)


def _member(scope: _Scope, node: ast.Attribute, modules: dict[str, frozenset[str]], members: frozenset[str]) -> Faults:
    root = node.value.id if isinstance(node.value, ast.Name) else ""
    if "__" in node.attr:
        yield node, f"names with two underscores are not allowed: {node.attr!r}"
    elif not isinstance(node.ctx, ast.Load):
        yield node, "assigning to an attribute is not allowed: use a variable"
    elif root == "self":
        known = {*scope.layers.children, *scope.methods, "training"}
        if node.attr not in known:
            yield node, f"unknown layer or method 'self.{node.attr}'.{nearest(node.attr, known)}"
    elif root in modules:
        if node.attr not in modules[root]:
            instead = f" Instead, {_INSTEAD[root, node.attr]}." if (root, node.attr) in _INSTEAD else ""
            yield node, f"'{root}.{node.attr}' is not allowed in a spec.{instead or nearest(node.attr, modules[root])}"
    else:
        owner = _layer(scope, node.value)
        if node.attr not in members and (owner is None or node.attr not in owner.children):
            names = members.union(owner.children if owner else ())
            yield node, f"attribute {node.attr!r} is not allowed in a spec.{nearest(node.attr, names)}"
        yield from _check(scope, node.value)


def _layer(scope: _Scope, node: ast.expr) -> LayerNames | None:
    """Which layer `self.block[0].conv` is, or None where the text alone doesn't say."""
    if isinstance(node, ast.Name):
        return scope.layers if node.id == "self" else None
    if isinstance(node, ast.Attribute):
        owner, name = _layer(scope, node.value), node.attr
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        owner, name = _layer(scope, node.value), str(node.slice.value)
    else:
        return None
    return owner.children.get(name) if owner else None


def _call(scope: _Scope, node: ast.Call) -> Faults:
    function = node.func
    if isinstance(function, ast.Attribute):
        yield from _member(scope, function, _CALLED, TENSOR_METHODS)
    elif isinstance(function, ast.Subscript) or (isinstance(function, ast.Name) and function.id not in BUILTINS):
        yield from _check(scope, function)
    elif not isinstance(function, ast.Name):
        yield function, f"expected a layer or a function to call, found {ast.unparse(function)[:60]!r}"
    for keyword in node.keywords:
        if keyword.arg is None:
            yield keyword.value, "** is not allowed: write the arguments out"
        elif "__" in keyword.arg:
            yield keyword, f"names with two underscores are not allowed: {keyword.arg!r}"
    for value in (*node.args, *(keyword.value for keyword in node.keywords)):
        yield from _check(scope, value)
    yield from _sizes(node)


def _sizes(node: ast.Call) -> Faults:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name == "range" and any((fold(value) or 0) > MAX_ITERATIONS for value in node.args):
        yield node, f"expected at most {MAX_ITERATIONS} iterations"
    if name in SIZING and elements(node) > MAX_ELEMENTS:
        yield node, f"expected at most {MAX_ELEMENTS} elements: make it smaller"


def _operation(scope: _Scope, node: ast.BinOp) -> Faults:
    sides = (node.left, node.right)
    if not isinstance(node.op, _OPERATORS):
        yield node, "`<<` is not allowed: multiply"
    elif any(isinstance(side, ast.Constant) and isinstance(side.value, str | bool) for side in sides):
        yield node, "arithmetic on text or booleans is not allowed"
    elif isinstance(node.op, ast.Mult) and any(isinstance(side, ast.List | ast.Tuple | ast.ListComp) for side in sides):
        times = next((value for side in sides if (value := fold(side)) is not None), None)
        if times is None or times > MAX_ITERATIONS:
            yield node, f"expected to repeat a list by a constant of at most {MAX_ITERATIONS}"
    elif isinstance(node.op, ast.Pow):
        exponent = fold(node.right)
        if exponent is None or abs(exponent) > MAX_EXPONENT:
            yield node, f"expected a constant exponent of at most {MAX_EXPONENT}: use torch.pow"
    if all(fold(side) is not None for side in sides) and fold(node) is None:
        yield node, f"expected a number of at most {MAX_INTEGER}, found {ast.unparse(node)[:60]!r}"
    for side in sides:
        yield from _check(scope, side)


def _constant(_: _Scope, node: ast.Constant) -> Faults:
    if not _plain_constant(node):
        yield node, f"expected a plain constant of at most {MAX_INTEGER} or {MAX_CHARACTERS} characters"


def _plain_constant(node: ast.Constant) -> bool:
    value = node.value
    if isinstance(value, str):
        return len(value) <= MAX_CHARACTERS
    if isinstance(value, int):
        return abs(value) <= MAX_INTEGER
    return value is None or value is ... or isinstance(value, float)


def _comprehension(scope: _Scope, node: ast.comprehension) -> Faults:
    if node.is_async:
        yield node.target, "async is not allowed"
    for part in (node.target, node.iter, *node.ifs):
        yield from _check(scope, part)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


_RULES: dict[type[ast.AST], Callable[[_Scope, Any], Faults]] = {
    ast.Expr: _expression_statement,
    ast.Assign: _assignment,
    ast.AnnAssign: _assignment,
    ast.AugAssign: _augmented,
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.Call: _call,
    ast.BinOp: _operation,
    ast.Constant: _constant,
    ast.comprehension: _comprehension,
}
