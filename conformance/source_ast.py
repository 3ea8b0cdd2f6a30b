"""Python text to a syntax tree, within bounds that hold before anything looks at the tree."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MAX_TEXT = 16_384
MAX_NESTING = 60
MAX_EXPONENT = 8
MAX_INTEGER = 2**31

Number = int | float

_ARITHMETIC: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class Fault:
    """One thing that a checked text may not hold: the offset of its first character, and what to do about it."""

    offset: int
    message: str


def read(text: str, mode: Literal["eval", "exec"]) -> ast.Expression | ast.Module | Fault:
    """Parse Python text; returns a fault where it is too long, nests too deep or is no Python."""
    if len(text) > MAX_TEXT:
        return Fault(0, f"expected at most {MAX_TEXT} characters, found {len(text)}: split the module")
    try:
        tree = ast.parse(text, mode=mode)
    except SyntaxError as error:
        line = min(error.lineno or 1, text.count("\n") + 1)
        offset = sum(len(part) for part in text.split("\n")[: line - 1]) + line - 1 + max((error.offset or 1) - 1, 0)
        return Fault(min(offset, max(len(text) - 1, 0)), f"not valid Python: {error.msg}{_hint(text)}")
    except (ValueError, RecursionError, MemoryError):
        return Fault(0, "not valid Python: nested too deep, or an odd character in it")
    assert isinstance(tree, ast.Expression | ast.Module)
    return _too_deep(text, tree) or tree


def offset_of(text: str, node: ast.AST) -> int:
    """Return where a node starts, in characters of the text; the tree itself counts bytes of a line."""
    lines = text.split("\n")
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
    in_line = len(lines[line - 1].encode()[:column].decode(errors="replace"))
    return sum(len(part) + 1 for part in lines[: line - 1]) + in_line


def fold(node: ast.AST) -> Number | None:
    """Return the value of arithmetic on constants, or None where it is something else or leaves the bounds."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, int | float) and not isinstance(node.value, bool) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = fold(node.operand)
        return -value if value is not None and isinstance(node.op, ast.USub) else value
    return _fold_operation(node) if isinstance(node, ast.BinOp) else None


def _fold_operation(node: ast.BinOp) -> Number | None:
    left, right, calculate = fold(node.left), fold(node.right), _ARITHMETIC.get(type(node.op))
    if left is None or right is None or calculate is None or not (_bounded(left) and _bounded(right)):
        return None
    if isinstance(node.op, ast.Pow) and abs(right) > 4 * MAX_EXPONENT:
        return None
    try:
        value = calculate(left, right)
    except ArithmeticError:
        return None
    # A negative number to a fraction is complex.
    return value if isinstance(value, int | float) and _bounded(value) else None


def _bounded(value: Number) -> bool:
    return isinstance(value, float) or abs(value) <= MAX_INTEGER


def _hint(text: str) -> str:
    if text.count("(") > text.count(")"):
        return " (inside {...} a comma ends an unquoted text: put quotes around it)"
    return ""


def _too_deep(text: str, tree: ast.AST) -> Fault | None:
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > MAX_NESTING:
            return Fault(offset_of(text, node), f"nested deeper than {MAX_NESTING} levels: use variables or layers")
        waiting.extend((child, depth + 1) for child in ast.iter_child_nodes(node))
    return None
