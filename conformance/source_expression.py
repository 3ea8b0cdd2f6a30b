"""Checks the expression that makes a layer, such as `nn.Linear(30, 20, bias=False)`, without running it."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from functools import cache, lru_cache

from conformance.errors import nearest
from conformance.source_ast import Fault, fold, offset_of, read
from conformance.source_tables import CONSTRUCTORS, CONTAINERS, DTYPES, PARAMETER_TENSORS

MAX_ARGUMENT = 2**20
MAX_ELEMENTS = 2**26
_FLOATS = frozenset({"pi", "e", "inf", "sqrt"})

Faults = Iterator[tuple[ast.AST, str]]


@lru_cache(maxsize=4096)
def check_expression(text: str) -> ast.Expression | tuple[Fault, ...]:
    """Return the checked tree of a layer's expression, or everything that is wrong with it."""
    tree = read(text, "eval")
    if isinstance(tree, Fault):
        return (tree,)
    assert isinstance(tree, ast.Expression)
    found = _parameter(tree.body) if is_parameter(tree) else _layer(tree.body)
    faults = tuple(Fault(offset_of(text, node), message) for node, message in found)
    return faults or tree


def is_parameter(tree: ast.Expression) -> bool:
    """True for `nn.Parameter(...)`, which is no module and needs a `forward` that uses it."""
    return isinstance(tree.body, ast.Call) and _dotted(tree.body.func) == ("nn", "Parameter")


def _layer(node: ast.expr) -> Faults:
    if not isinstance(node, ast.Call):
        found = ast.unparse(node)[:60]
        hint = " Add its arguments in parentheses." if _dotted(node)[:1] == ("nn",) else ""
        yield node, f"expected a layer such as nn.Linear(30, 20), found {found!r}.{hint}"
        return
    module, name = (*_dotted(node.func), "", "")[:2] if len(_dotted(node.func)) == 2 else ("", "")
    if module == "nn" and name in CONTAINERS:
        yield from _container(node, name)
    elif module == "nn" and name in CONSTRUCTORS:
        yield from _arguments(node, name)
    elif module == "nn" and name == "Parameter":
        yield node, "expected a layer, found a parameter: name it in `layers` and use it in `forward`"
    else:
        known = [f"nn.{known}" for known in (*CONSTRUCTORS, *CONTAINERS, "Parameter")]
        found = ast.unparse(node.func)[:60]
        yield node.func, f"unknown layer {found!r}.{nearest(found, known)}"


def _container(node: ast.Call, name: str) -> Faults:
    for keyword in node.keywords:
        yield keyword, f"nn.{name} takes no keyword arguments"
    if name == "Sequential":
        for item in node.args:
            yield from _layer(item)
        return
    wanted = ast.List if name == "ModuleList" else ast.Dict
    if len(node.args) != 1 or not isinstance(node.args[0], wanted):
        example = "[nn.ReLU(), nn.ReLU()]" if name == "ModuleList" else "{'act': nn.ReLU()}"
        yield node, f"expected nn.{name}({example})"
        return
    items = node.args[0]
    if isinstance(items, ast.List):
        for item in items.elts:
            yield from _layer(item)
    elif isinstance(items, ast.Dict):
        yield from _named_layers(items)


def _named_layers(items: ast.Dict) -> Faults:
    for key, value in zip(items.keys, items.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str) or not key.value.isidentifier():
            yield key or value, "expected a quoted name as the key of a layer"
        elif "__" in key.value:
            yield key, f"a name may not hold two underscores: rename {key.value!r}"
        yield from _layer(value)


def _parameter(node: ast.expr) -> Faults:
    if not isinstance(node, ast.Call):
        return
    made_by = node.args[0] if len(node.args) == 1 and not node.keywords else node
    dotted = _dotted(made_by.func) if isinstance(made_by, ast.Call) and made_by is not node else ()
    if len(dotted) != 2 or dotted[0] != "torch" or dotted[1] not in PARAMETER_TENSORS:
        yield made_by, f"expected nn.Parameter(torch.<one of {', '.join(sorted(PARAMETER_TENSORS))}>(...)) and no more"
        return
    assert isinstance(made_by, ast.Call)
    yield from _values(made_by)
    for keyword in made_by.keywords:
        if keyword.arg not in {"dtype", "size", "fill_value"}:
            yield keyword, f"unknown argument {keyword.arg!r} of torch.{dotted[1]}: expected dtype"
    if elements(made_by) > MAX_ELEMENTS:
        yield made_by, f"expected at most {MAX_ELEMENTS} elements: make the parameter smaller"


def elements(node: ast.Call) -> float:
    """Return how many elements a call's constants may ask for: their product, a fraction counting as its inverse.

    The value that fills a tensor is left out.
    """
    filled = _dotted(node.func)[-1:] in {("full",), ("new_full",)}
    named = [keyword.value for keyword in node.keywords if keyword.arg not in {"value", "fill_value"}]
    arguments = [*(node.args[:1] if filled else node.args), *named]
    sizes = (fold(part) for whole in arguments for part in getattr(whole, "elts", [whole]))
    return math.prod(max(abs(size), 1 / abs(size)) for size in map(float, filter(None, sizes)) if size)


def _arguments(node: ast.Call, name: str) -> Faults:
    positional, keyword_only, required = _signature(name)
    usage = f"nn.{name}({CONSTRUCTORS[name]})"
    given = positional[: len(node.args)]
    if len(node.args) > len(positional):
        yield node.args[len(positional)], f"too many arguments ({len(node.args)}): expected {usage}"
    names = set(given)
    for keyword in node.keywords:
        if keyword.arg is None:
            yield keyword.value, "** is not allowed: write the arguments out"
        elif keyword.arg not in positional and keyword.arg not in keyword_only:
            hint = nearest(keyword.arg, (*positional, *keyword_only)) or f" Expected {usage}."
            yield keyword, f"nn.{name} has no argument {keyword.arg!r}.{hint}"
        elif keyword.arg in names:
            yield keyword, f"argument {keyword.arg!r} is given twice: remove one"
        names.add(keyword.arg or "")
    if missing := [each for each in required if each not in names]:
        yield node, f"missing argument{'s' * (len(missing) > 1)} {', '.join(missing)}: expected {usage}"
    yield from _values(node)


@cache
def _signature(name: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    before, _, after = CONSTRUCTORS[name].partition("*, ")
    positional = [part for part in before.rstrip(", ").split(", ") if part]
    names = tuple(part.rstrip("=") for part in positional)
    required = tuple(part for part in positional if not part.endswith("="))
    return names, tuple(part.rstrip("=") for part in after.split(", ") if part), required


def _values(node: ast.Call) -> Faults:
    for value in (*node.args, *(keyword.value for keyword in node.keywords)):
        yield from _value(value)


def _value(node: ast.expr) -> Faults:
    if isinstance(node, ast.Tuple | ast.List):
        for item in node.elts:
            yield from _value(item)
        return
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool | str)):
        if isinstance(node.value, str) and len(node.value) > 200:
            yield node, "expected at most 200 characters of text"
        return
    if len(dotted := _dotted(node)) == 2:
        module, name = dotted
        if (module, name in DTYPES, name in _FLOATS) not in {("torch", True, False), ("math", False, True)}:
            yield node, f"expected a value or a dtype such as torch.float32, found {ast.unparse(node)[:60]!r}"
        return
    yield from _number(node)


def _number(node: ast.expr) -> Faults:
    """Arithmetic on constants, with math.sqrt and math.pi; every integer in it is bounded."""
    folded = fold(node)
    if folded is not None:
        if isinstance(folded, int) and abs(folded) > MAX_ARGUMENT:
            yield node, f"expected an integer of at most {MAX_ARGUMENT}, found {ast.unparse(node)[:60]}"
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        if fold(node.left) is not None and fold(node.right) is not None:
            yield node, f"expected an integer of at most {MAX_ARGUMENT}, found {ast.unparse(node)[:60]}"
        yield from _number(node.left)
        yield from _number(node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield from _number(node.operand)
    elif isinstance(node, ast.Call) and _dotted(node.func) == ("math", "sqrt") and not node.keywords:
        yield from _values(node)
    elif not (len(_dotted(node)) == 2 and _dotted(node)[0] == "math" and _dotted(node)[1] in _FLOATS):
        yield node, f"expected a constant value, found {ast.unparse(node)[:60]!r}"


def _dotted(node: ast.expr) -> tuple[str, ...]:
    """The parts of `a.b`, or nothing for any other expression."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (node.value.id, node.attr)
    return ()
