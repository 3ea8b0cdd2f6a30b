"""Says in a spec author's words, and at the right place in the file, what validation found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from conformance.errors import Mistake, nearest
from conformance.tensorspec import KEY
from conformance.yamltree import Fields, Items, Node, Scalar, kind, mistake_at

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "none_required": "nothing (null)",
    "finite_number": "a finite number",
    "enum": "{expected}",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} in all",
    "too_long": "at most {max_length} in all",
}

Loc = tuple[int | str, ...]


def mistakes_of(error: ValidationError, tree: Fields, model: type[BaseModel]) -> Iterator[Mistake]:
    """Yield one mistake for everything that validating `tree` as `model` found."""
    missing: dict[Loc, list[str]] = {}
    for detail in error.errors(include_url=False):
        loc, context = detail["loc"], detail.get("ctx", {})
        if detail["type"] == "missing" and isinstance(loc[-1], str):
            missing.setdefault(loc[:-1], []).append(repr(loc[-1]))
        elif detail["type"] == "extra_forbidden":
            known = [name for owner in _models_at(model, loc[:-1]) for name in owner.model_fields]
            hint = nearest(str(loc[-1]), known) or f" Expected one of {', '.join(sorted(known))}."
            yield mistake_at(find(tree, (*loc, KEY)), f"unknown key {loc[-1]!r}.{hint}")
        elif detail["type"] == "misplaced":
            yield mistake_at(find(tree, (*loc, *context["path"])), context["message"])
        else:
            yield mistake_at(find(tree, loc), _say(detail["type"], detail["input"], context, detail["msg"]))
    for loc, names in missing.items():
        yield mistake_at(
            find(tree, loc), f"missing key{'s' * (len(names) > 1)} {', '.join(names)}: add what is missing"
        )


def _say(error: str, found: object, context: dict[str, Any], message: str) -> str:
    if error == "value_error":
        return str(context["error"])
    if error == "missing":
        return "expected two values, found fewer"
    if error not in _EXPECTED:
        return f"{message[:1].lower()}{message[1:]}, found {kind(found)}"
    expected = _EXPECTED[error].format_map(context)
    hint = ""
    if error in {"enum", "literal_error"} and isinstance(found, str):
        hint = nearest(found, expected.replace(" or ", ", ").replace("'", "").split(", "))
    size = "actual_length" in context
    return f"expected {expected}, found {context['actual_length'] if size else kind(found)}{'.' if hint else ''}{hint}"


def find(tree: Node, loc: Loc) -> Node:
    """Return the node that a location means, as far in as it leads.

    Parts that stand in no file, such as those that a short form leaves out, are skipped.
    """
    node, key = tree, None
    for part in loc:
        if part == KEY:
            return key or node
        inner = _inner(node, part)
        if inner:
            key, node = inner
    return node


def _inner(node: Node, part: int | str) -> tuple[Scalar | None, Node] | None:
    if isinstance(node, Items) and isinstance(part, int) and 0 <= part < len(node.items):
        return None, node.items[part]
    if isinstance(node, Fields):
        return next(((key, value) for key, value in node.entries if key.text == str(part)), None)
    return None


def _models_at(model: type[BaseModel], loc: Loc) -> set[type[BaseModel]]:
    """The models whose keys may stand at a location."""
    models = {model}
    for part in loc:
        fields = [owner.model_fields[part] for owner in models if isinstance(part, str) and part in owner.model_fields]
        if fields:
            models = {inner for field in fields for inner in _models_in(field.annotation)}
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
