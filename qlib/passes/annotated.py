"""What a quantizer wrote into a graph, as the decision that observers are placed by.

The rules of placement are those that quantizers for torchao are written for:

    output      a node's `output_qspec` quantizes its value for all users
    edge        `input_qspec_map` quantizes a value for one user, after what the value's own spec does to it
    shared      points that refer to each other have the same parameters, in any order and over any number of steps
    unasked     edges of one value with equal specs share one quantize, the value's own where that spec is equal too
    run time    each tensor has the range of its own data, also where it is said to share another's
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType

import torch
from torch import fx

from qlib.errors import QuantizerError
from qlib.graph import op_name
from qlib.groups import Groups
from qlib.ops import BY_HEAD, Op, When
from qlib.passes.annotate import Annotation, Placement, takes_weight, when_of
from qlib.qparams import DType, QSpec, RangeFrom
from qlib.quantizer import Derived, EdgeOrNode, Shared, Wanted, read_annotation
from qlib.rewrite import Match, find

Edge = tuple[fx.Node, fx.Node]


@dataclass(frozen=True)
class _Points:
    """Every output and edge that is quantized: its spec, the group that it is in, and the specs it was asked for by."""

    specs: Mapping[EdgeOrNode, QSpec]
    groups: Groups[EdgeOrNode]
    derived: Mapping[Edge, Derived]

    def seen(self, value: fx.Node, user: fx.Node) -> QSpec | None:
        """How `user` gets `value`, None for in float."""
        return self.specs.get((value, user), self.specs.get(value))

    def touched(self, value: fx.Node) -> bool:
        """Whether `value` is quantized for anyone."""
        return value in self.specs or any((value, user) in self.specs for user in value.users)


def annotated(model: fx.GraphModule, gone: Mapping[fx.Node, fx.Node] = MappingProxyType({})) -> Annotation:
    """Read the annotations of a normalised graph and find the operators that they quantize.

    `gone` are nodes that were taken out since the graph was annotated, with those that have their values now: what is
    asked of the former is asked of the latter.

    Raises QuantizerError where they contradict each other: a spec shared with a point that has none or with itself in a
    circle, one derived from what is not quantized, an edge between nodes that have none; and QConfigError for types and
    observers that do not exist here.
    """
    points = _read(model.graph, gone)
    matches = _operators(model.graph, points)
    weights = [
        Placement(value, points.specs[value, head], (head,), None)
        for value, head in _edges(points.specs)
        if _takes_as_weight(value, head)
    ]
    for placement in weights:
        _check_weight(placement, points)
    placements = tuple(_placements(model.graph, points))
    float_biases = tuple(
        node for node in model.graph.nodes if (bias := _bias(node)) is not None and (bias, node) not in points.derived
    )
    return Annotation(tuple(matches), placements, tuple(weights), float_biases=float_biases)


# --------------------------------------------------------------------------------------------------------------- points


def _read(graph: fx.Graph, gone: Mapping[fx.Node, fx.Node]) -> _Points:
    wanted: dict[EdgeOrNode, Wanted] = {}
    sharing: list[Edge] = []
    for node in chain(graph.nodes, gone):
        note = read_annotation(node)
        if note is None:
            continue
        for asked, spec in note.inputs.items():
            value = gone.get(asked, asked)
            if value not in node.all_input_nodes:
                raise QuantizerError(f"{node} is annotated with an input {value} that it does not take")
            wanted[value, node] = _moved(spec, gone)
            sharing += [(value, node)] if note.shares else []
        if note.output is not None:
            wanted[gone.get(node, node)] = _moved(note.output, gone)
    groups: Groups[EdgeOrNode] = Groups()
    specs = _resolved(wanted, groups)
    derived = {point: spec for point, spec in wanted.items() if isinstance(spec, Derived)}
    for point, spec in derived.items():
        _check_derived(point, spec, specs)
    for edge in sharing:
        _share_unasked(edge, specs, groups)
    points = _Points(specs, groups, {point: spec for point, spec in derived.items() if isinstance(point, tuple)})
    _check_points(points)
    return points


def _moved(spec: Wanted, gone: Mapping[fx.Node, fx.Node]) -> Wanted:
    """A spec with the points that it refers to as they are called now."""

    def now(point: EdgeOrNode) -> EdgeOrNode:
        return (gone.get(point[0], point[0]), point[1]) if isinstance(point, tuple) else gone.get(point, point)

    if isinstance(spec, Shared):
        return Shared(now(spec.point))
    return replace(spec, sources=tuple(map(now, spec.sources))) if isinstance(spec, Derived) else spec


def _resolved(wanted: Mapping[EdgeOrNode, Wanted], groups: Groups[EdgeOrNode]) -> dict[EdgeOrNode, QSpec]:
    """The spec of each point, those that share having the one that they lead to; joins the groups on the way."""
    specs: dict[EdgeOrNode, QSpec] = {}
    for point in wanted:
        path = [point]
        while isinstance(spec := wanted[path[-1]], Shared):
            if spec.point not in wanted:
                raise QuantizerError(f"{_named(path[-1])} shares with {_named(spec.point)}, which has no spec to share")
            if spec.point in path:
                circle = " → ".join(map(_named, [*path, spec.point]))
                raise QuantizerError(f"{circle} share with each other in a circle: give one of them a spec of its own")
            path.append(spec.point)
        if isinstance(spec, QSpec):
            specs[point] = spec
            groups.union(path[-1], point)
        elif len(path) > 1:
            raise QuantizerError(f"{_named(point)} shares with {_named(path[-1])}, whose parameters are derived")
    return specs


def _share_unasked(edge: Edge, specs: Mapping[EdgeOrNode, QSpec], groups: Groups[EdgeOrNode]) -> None:
    """Join an edge with its value's own point and the value's other edges, where the specs are equal."""
    value, node = edge
    others: list[EdgeOrNode] = [value, *((value, user) for user in value.users if user is not node)]
    for other in others:
        if edge in specs and other in specs and _equal(specs[edge], specs[other]):
            groups.union(other, edge)


def _equal(one: QSpec, other: QSpec) -> bool:
    """Whether two specs ask for the same integers; which observer finds the range does not matter."""

    def asked(spec: QSpec) -> tuple[object, ...]:
        fixed = (spec.scale, spec.zero_point)
        return (spec.dtype, spec.range, spec.symmetric, spec.axis, spec.group_size, spec.range_from, *fixed)

    return asked(one) == asked(other)


def _check_points(points: _Points) -> None:
    for point, spec in points.specs.items():
        weight = isinstance(point, tuple) and _takes_as_weight(*point)
        if not weight and spec.axis is not None:
            raise QuantizerError(f"{_named(point)}: expected one scale for the tensor, found one per channel")
        if not weight and spec.dtype is DType.FLOAT16:
            raise QuantizerError(f"{_named(point)}: expected a type of integers, found float16, which is for weights")


def _check_derived(point: EdgeOrNode, spec: Derived, specs: Mapping[EdgeOrNode, QSpec]) -> None:
    """A derived spec is for a bias: int32 steps of the product of the scales of its operator's input and weight."""
    for source in spec.sources:
        if source not in specs:
            raise QuantizerError(f"{_named(point)} is derived from {_named(source)}, which is not quantized")
    value, node = point if isinstance(point, tuple) else (point, point)
    if _bias(node) is not value or {_tensor(source) for source in spec.sources} != _factors(node):
        raise QuantizerError(
            f"{_named(point)}: expected derived parameters for a bias only, from its operator's input and weight"
        )
    scale, zero_point = spec.rule([_Probe(0.5), _Probe(0.25)])
    if float(torch.as_tensor(scale).flatten()[0]) != 0.125 or bool(torch.as_tensor(zero_point).any()):
        raise QuantizerError(
            f"{_named(point)}: expected the product of the scales of input and weight, and zero point 0; "
            f"from scales 0.5 and 0.25 the rule made {scale} and {zero_point}"
        )
    if spec.dtype is not DType.INT32:
        raise QuantizerError(f"{_named(point)}: expected int32 for a bias, found {spec.dtype}")


def _factors(node: fx.Node) -> set[object]:
    """The input and the weight of a weighted operator."""
    row = _rows(node)[0]
    return {node.args[position] for position in (*row.operands, row.weight) if position is not None}


@dataclass(frozen=True)
class _Probe:
    """Stands for an observer, to see what a rule makes of its scale."""

    scale: float

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point, under the name that rules call."""
        return torch.tensor([self.scale]), torch.tensor([0], dtype=torch.int32)


def _named(point: EdgeOrNode) -> str:
    return f"the edge {point[0]} → {point[1]}" if isinstance(point, tuple) else f"the value of {point}"


def _tensor(point: EdgeOrNode) -> fx.Node:
    return point[0] if isinstance(point, tuple) else point


def _edges(points: Mapping[EdgeOrNode, QSpec]) -> Iterator[Edge]:
    return (point for point in points if isinstance(point, tuple))


# ----------------------------------------------------------------------------------------------------------- placements


def _placements(graph: fx.Graph, points: _Points) -> Iterator[Placement]:
    """One for each value that has a spec of its own, and one for each group of its edges that is not that value's."""
    for value in graph.nodes:
        own = points.groups.find(value) if value in points.specs else None
        if own is not None:
            yield Placement(value, points.specs[own], None, own)
        users: dict[EdgeOrNode, list[fx.Node]] = {}
        for user in value.users:
            if (value, user) in points.specs and not _takes_as_weight(value, user):
                users.setdefault(points.groups.find((value, user)), []).append(user)
        for leader, takers in users.items():
            if leader != own:
                yield Placement(value, points.specs[leader], tuple(takers), leader)


# ------------------------------------------------------------------------------------------------------------ operators


def _rows(node: fx.Node) -> tuple[Op, ...]:
    return BY_HEAD.get(op_name(node), ())


def _bias(node: fx.Node) -> fx.Node | None:
    """The node that an operator takes as its bias."""
    position = next((row.bias for row in _rows(node) if row.bias is not None), None)
    bias = node.args[position] if position is not None else None
    return bias if isinstance(bias, fx.Node) else None


def _takes_as_weight(value: fx.Node, user: fx.Node) -> bool:
    rows = [row for row in _rows(user) if row.weight is not None]
    return value.op == "get_attr" and any(user.args[row.weight or 0] is value for row in rows)


def _check_weight(placement: Placement, points: _Points) -> None:
    assert placement.users is not None
    edge = (placement.value, placement.users[0])
    leader = points.groups.find(edge)
    others = [point for point in points.specs if points.groups.find(point) == leader]
    if any(_tensor(point) is not placement.value for point in others):
        raise QuantizerError(f"{_named(edge)} is a weight and shares with other tensors: give it a spec of its own")
    if placement.spec.range_from is RangeFrom.RUNTIME:
        raise QuantizerError(f"{_named(edge)} is a weight: expected an observer that sees it, found one for run time")


def _operators(graph: fx.Graph, points: _Points) -> list[Match]:
    matches: list[Match] = []
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in taken and (match := find(node, lambda match: _is_quantized(match, points))) is not None:
            matches.append(match)
            taken.update(match.nodes)
    return matches


def _is_quantized(match: Match, points: _Points) -> bool:
    """Whether operands, weight and result are quantized as the row needs, and nothing between its operators is."""
    if any(points.touched(node) for node in match.nodes[:-1]) or not _weight_fits(match, points):
        return False
    specs = [points.seen(value, match.head) for value in match.operands]
    if match.op.when is When.WEIGHT_ONLY:
        return not any(specs)
    if any(spec is None or when_of(spec) is not match.op.when for spec in specs):
        return False
    is_list = "dtype" not in match.tail.meta
    return match.op.when is not When.STATIC or is_list or points.touched(match.tail)


def _weight_fits(match: Match, points: _Points) -> bool:
    """Whether the row has a kernel for the weight, and the bias is left to it: a range of its own fits no kernel."""
    bias = _bias(match.head)
    if bias is not None and (bias, match.head) in points.specs:
        return False
    if match.op.weight is None:
        return True
    value = match.head.args[match.op.weight]
    assert isinstance(value, fx.Node)
    spec = points.specs.get((value, match.head))
    return takes_weight(match.op, spec) and spec is not None and spec.axis in (None, match.weight_axis)
