"""What stays in float, and why: each operator that computes on floats and that no row of the table took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import fx

from qlib.graph import op_name
from qlib.kernels import KERNELS
from qlib.ops import BY_HEAD, Op
from qlib.rewrite import misfit


@dataclass(frozen=True)
class Leftover:
    """One operator that stays in float: its node and name, the module and line that it comes from, and why."""

    node: str
    operator: str
    module_path: str
    source: str
    reason: str

    def __str__(self) -> str:
        places = [f"of {self.module_path!r}"] if self.module_path else []
        places += [f"at {self.source}"] if self.source else []
        return " ".join([self.operator, f"({self.node})", *places, f"stays in float: {self.reason}"])


def leftovers(graph: fx.Graph, taken: Set[fx.Node], refused: Mapping[fx.Node, str]) -> tuple[Leftover, ...]:
    """The operators of an annotated graph that stay in float, in order.

    `taken` are the nodes of the operators that were found, `refused` says why rows that would fit were not taken.
    Operators that make no floats out of floats are not listed, nor are those that move floats as they would integers.
    """
    return tuple(
        Leftover(
            node.name,
            op_name(node),
            str(node.meta.get("module_path", "")),
            str(node.meta.get("source", "")),
            refused.get(node) or next(_misfits(node), "no row of the operator table stands for it"),
        )
        for node in graph.nodes
        if node not in taken and _computes(node)
    )


def _computes(node: fx.Node) -> bool:
    name = op_name(node)
    rows = [op for op in BY_HEAD.get(name, ()) if _alone(op)]
    moves = any(KERNELS[op.kernel].schema is None and not misfit(op, node) for op in rows)
    if not name.startswith("aten::") or moves or node.target._schema.is_mutable:  # type: ignore[union-attr]
        return False
    return _is_float(node) and any(map(_is_float, node.all_input_nodes))


def _is_float(node: fx.Node) -> bool:
    """Whether the node makes floats; one that makes several tensors is taken to."""
    dtype: Any = node.meta.get("dtype")
    return dtype is None or bool(dtype.is_floating_point)


def _misfits(node: fx.Node) -> Iterator[str]:
    """Why each row that stands for this operator alone does not stand for this call of it."""
    return filter(None, (misfit(op, node) for op in BY_HEAD.get(op_name(node), ()) if _alone(op)))


def _alone(op: Op) -> bool:
    return op.chain[1:] in ((), ("getitem",))
