"""The float operator that a row stands for: what a kernel calls on numbers, and the schema of its arguments."""

from __future__ import annotations

import re

import torch

from qlib.ops import Op


def overload_of(op: Op) -> torch._ops.OpOverload:
    """The overload of the first operator of the chain that a kernel of this row calls."""
    packet = getattr(torch.ops.aten, op.chain[0].partition("::")[2])
    overload: torch._ops.OpOverload = getattr(packet, op.overload or "default")
    return overload


def rest_of_schema(op: Op) -> str:
    """The positional arguments after the first as text with their defaults, `", int dim=0"`, empty where none are."""
    text = str(overload_of(op)._schema).partition("(")[2].partition(") ->")[0].partition(", *")[0]
    _, comma, rest = text.partition(", ")
    return f"{comma}{rest}".replace("SymInt", "int")


def without_defaults(arguments: str) -> str:
    """The same arguments, to be followed by others that have no defaults."""
    return re.sub(r"=(\[[^\]]*\]|[^,]*)", "", arguments)
