"""Tensors whose parameters are known beforehand, by the names that the captured graph has for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import fx
from torch.utils import _pytree as pytree

from qlib.errors import QConfigError
from qlib.groups import Groups
from qlib.qparams import QSpec


@dataclass(frozen=True)
class Given:
    """What is said of one tensor: its name, and its parameters as a fixed QSpec, or None where it is to be a float."""

    name: str
    spec: QSpec | None


NOTHING: Mapping[fx.Node, Given] = MappingProxyType({})


def names_of(graph: fx.Graph) -> Iterator[tuple[str, fx.Node]]:
    """The names that tensors may be given by: inputs and constants by their own, outputs as `output_0` and so on."""
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            yield str(node.target), node
        elif node.op == "output":
            for number, leaf in enumerate(pytree.tree_leaves(node.args[0])):
                if isinstance(leaf, fx.Node):
                    yield f"output_{number}", leaf


def find_given(graph: fx.Graph, given: Mapping[str, QSpec | None]) -> dict[fx.Node, Given]:
    """The nodes that are meant by name; raises QConfigError for unknown names, and for contradictions."""
    known = list(names_of(graph))
    if unknown := sorted(given.keys() - {name for name, _ in known}):
        raise QConfigError(
            f"parameters are given for {unknown[0]!r}, which the graph does not have; "
            f"expected one of {', '.join(dict.fromkeys(name for name, _ in known))}"
        )
    found: dict[fx.Node, Given] = {}
    for name, node in known:
        if name in given:
            stated = Given(name, given[name])
            _check_alike(found.setdefault(node, stated), stated)
    for node, stated in found.items():
        _check_fixed(node, stated)
    return found


def _check_fixed(node: fx.Node, stated: Given) -> None:
    if stated.spec is None:
        return
    if stated.spec.scale is None:
        raise QConfigError(f"expected a scale for {stated.name!r}, found the observer {stated.spec.observer!r}")
    if isinstance(stated.spec.scale, tuple) and node.op != "get_attr":
        raise QConfigError(
            f"expected one scale for {stated.name!r}, found one per channel: only weights can have those"
        )


def _check_alike(one: Given, other: Given) -> None:
    if one.spec != other.spec:
        raise QConfigError(
            f"{one.name!r} and {other.name!r} share their parameters, so that they can't be given as "
            f"{describe(one.spec)} and {describe(other.spec)}: give both the same"
        )


def sources(given: Mapping[fx.Node, Given]) -> dict[fx.Node, QSpec]:
    """The inputs and constants among the given tensors: they are quantized whatever takes them."""
    stated = {node: each.spec for node, each in given.items() if node.op in ("placeholder", "get_attr")}
    return {node: spec for node, spec in stated.items() if spec is not None}


def describe(spec: QSpec | None) -> str:
    """A given QSpec in a few words."""
    return "float" if spec is None else f"{spec.dtype} with scale {spec.scale} and zero point {spec.zero_point or 0}"


def by_group(given: Mapping[fx.Node, Given], groups: Groups[fx.Node]) -> dict[fx.Node, QSpec]:
    """The parameters of each group that one of its tensors has them given for, by the group's leader.

    Raises QConfigError, naming both tensors, where two of a group are given different ones.
    """
    first: dict[fx.Node, Given] = {}
    for node, stated in given.items():
        if stated.spec is not None:
            _check_alike(first.setdefault(groups.find(node), stated), stated)
    return {leader: stated.spec for leader, stated in first.items() if stated.spec is not None}
