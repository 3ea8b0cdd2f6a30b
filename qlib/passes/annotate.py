"""Deciding what is quantized: one decision for each tensor, read off the operator table and the QConfigs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from torch import fx

from qlib.ops import Family, Op, When
from qlib.qconfig import QConfig, QConfigMapping
from qlib.qparams import ROW, QSpec, RangeFrom
from qlib.rewrite import Match, find


@dataclass(frozen=True)
class Placement:
    """One tensor to be quantized.

    `users` are the nodes that get the quantized tensor; None stands for all of them. Placements with the same `group`
    have the same parameters, and the first one of a group is the one that watches the data.
    """

    value: fx.Node
    spec: QSpec
    users: tuple[fx.Node, ...] | None
    group: fx.Node | None


@dataclass(frozen=True)
class Annotation:
    """What will be quantized: the operators found, where activations and weights are, the rules that matched no module.

    `refused` says, for the first node of an operator, why a row that fits it was not taken.

    A weight is placed once for each operator that takes it, since each has its own input's scale beside it.
    """

    matches: tuple[Match, ...] = ()
    placements: tuple[Placement, ...] = ()
    weights: tuple[Placement, ...] = ()
    unused_rules: tuple[str, ...] = ()
    refused: Mapping[fx.Node, str] = field(default_factory=dict)


class _Groups:
    """Union-find over nodes; a group is known by the node that leads it."""

    def __init__(self) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}

    def find(self, node: fx.Node) -> fx.Node:
        """The leader of the group of `node`."""
        while (parent := self._parent.get(node, node)) is not node:
            self._parent[node] = self._parent.get(parent, parent)
            node = parent
        return node

    def union(self, leader: fx.Node, node: fx.Node) -> None:
        """Put both into one group, led by the first one's leader."""
        self._parent[self.find(node)] = self.find(leader)


def annotate(model: fx.GraphModule, mapping: QConfigMapping) -> Annotation:
    """Decide which operators run on integers and how each tensor between them is quantized.

    The decision follows the flow of values, not the order of the nodes. A tensor that an integer operator makes has
    that operator's description; a float tensor that such an operator needs is quantized for it, once for each
    description asked for.
    """
    qconfigs = {node: _qconfig(node, mapping) for node in model.graph.nodes}
    refused: dict[fx.Node, str] = {}
    matches, produced, groups = _find_operators(model.graph, qconfigs, refused)
    placements = [
        Placement(match.tail, produced[match.tail], None, groups.find(match.tail))
        for match in matches
        if match.tail in produced and "dtype" in match.tail.meta  # a list of tensors is not observed, its items are
    ]
    wanted: dict[tuple[fx.Node, QSpec], list[fx.Node]] = {}
    for match in matches:
        spec = _input_spec(match.op, qconfigs[match.head])
        for value in dict.fromkeys(match.operands):
            if spec is not None and not _agree(produced.get(value), spec):
                wanted.setdefault((value, spec), []).append(match.head)
    placements += [Placement(value, spec, tuple(users), None) for (value, spec), users in wanted.items()]
    weights = [place for match in matches for place in _weights(match, qconfigs[match.head])]
    modules = {(str(n.meta.get("module_path", "")), str(n.meta.get("module_type", ""))) for n in model.graph.nodes}
    return Annotation(tuple(matches), tuple(placements), tuple(weights), mapping.unused(modules), refused)


def _weights(match: Match, qconfig: QConfig | None) -> list[Placement]:
    if qconfig is None or qconfig.weight is None:
        return []
    spec = qconfig.weight
    spec = spec if spec.axis is None else replace(spec, axis=match.weight_axis)
    return [Placement(value, spec, (match.head,), None) for value in match.weights]


def _qconfig(node: fx.Node, mapping: QConfigMapping) -> QConfig | None:
    return mapping.resolve(str(node.meta.get("module_path", "")), str(node.meta.get("module_type", "")))


def _find_operators(
    graph: fx.Graph, qconfigs: Mapping[fx.Node, QConfig | None], refused: dict[fx.Node, str]
) -> tuple[list[Match], dict[fx.Node, QSpec], _Groups]:
    matches: list[Match] = []
    produced: dict[fx.Node, QSpec] = {}
    groups = _Groups()
    taken: set[fx.Node] = set()

    def accept(match: Match) -> bool:
        reason = _refusal(match, qconfigs, produced)
        if reason and (match.head not in refused or refused[match.head] in _MISSING.values()):
            refused[match.head] = reason  # that another row is for another time says least
        return not reason

    for node in graph.nodes:
        if node in taken or (match := find(node, accept)) is None:
            continue
        matches.append(match)
        taken.update(match.nodes)
        result = _result_spec(match, qconfigs[node], produced)
        if result is not None:
            produced[match.tail] = result
            if match.op.family is Family.SHARED:
                groups.union(match.operands[0], match.tail)
    return matches, produced, groups


# What there is no kernel for, by the time at which the QConfig wants ranges to be known.
_MISSING: Mapping[When, str] = MappingProxyType(
    {
        When.STATIC: "no kernel takes ranges that are known beforehand",
        When.DYNAMIC: "no kernel takes ranges at run time",
        When.PER_TOKEN: "no kernel takes a range for each row",
        When.WEIGHT_ONLY: "no kernel takes floats with a weight in few bits",
    }
)


def _refusal(match: Match, qconfigs: Mapping[fx.Node, QConfig | None], produced: Mapping[fx.Node, QSpec]) -> str:
    """Why the QConfigs or its inputs don't allow this operator, empty where they do."""
    op, qconfig = match.op, qconfigs[match.head]
    if qconfig is None or any(qconfigs[node] is None for node in match.nodes):
        return "its QConfig is None"
    if any(qconfigs[node] != qconfig for node in match.nodes):
        return "the modules that it is made of have different QConfigs"
    if op.family not in (Family.WEIGHTED, Family.OBSERVED):
        return _following_refusal(match, qconfig, produced)
    return _starting_refusal(match, qconfig)


def _starting_refusal(match: Match, qconfig: QConfig) -> str:
    """As `_refusal`, for an operator that starts a quantized region."""
    op = match.op
    others = {value.meta["dtype"] for value in match.operands if not value.meta["dtype"].is_floating_point}
    if others:
        return f"its input is {others.pop()}, not float"
    if op.when is not _when(qconfig):
        return _MISSING[_when(qconfig)]
    if op.weight is not None and not _takes_weight(op, qconfig.weight):
        return _weight_refusal(qconfig.weight)
    return "its QConfig leaves results in float" if op.when is When.STATIC and qconfig.result is None else ""


def _following_refusal(match: Match, qconfig: QConfig, produced: Mapping[fx.Node, QSpec]) -> str:
    """As `_refusal`, for an operator that is quantized only where its inputs are."""
    if not all(value in produced for value in match.operands):
        return "its inputs are not quantized" if len(match.operands) > 1 else "its input is not quantized"
    keeps = match.op.family in (Family.SHARED, Family.FIXED)
    return "" if keeps or qconfig.result is not None else "its QConfig leaves results in float"


def _weight_refusal(weight: QSpec | None) -> str:
    if weight is None:
        return "its QConfig has no weight"
    return f"no kernel takes weights of {weight.dtype}{' in groups' if weight.group_size is not None else ''} here"


def _takes_weight(op: Op, weight: QSpec | None) -> bool:
    """Whether the operator has a kernel for weights of this kind; sums of integers have one scale per channel."""
    return (
        weight is not None
        and weight.dtype in op.weight_types
        and (weight.group_size is None or op.when is When.WEIGHT_ONLY)
    )


def _when(qconfig: QConfig) -> When:
    """When the ranges of inputs are known, as the QConfig wants it."""
    if qconfig.activation is None:
        return When.WEIGHT_ONLY
    if qconfig.activation.range_from is not RangeFrom.RUNTIME:
        return When.STATIC
    return When.PER_TOKEN if qconfig.activation.group_size == ROW else When.DYNAMIC


def _result_spec(match: Match, qconfig: QConfig | None, produced: Mapping[fx.Node, QSpec]) -> QSpec | None:
    """How the results are quantized, None where they stay in float."""
    if match.op.family is Family.SHARED:
        return produced[match.operands[0]]
    if match.op.interval is not None:
        return fixed_spec(produced[match.operands[0]], match.op.interval)
    return qconfig.result if qconfig is not None else None


def fixed_spec(like: QSpec, interval: tuple[float, float]) -> QSpec:
    """The spec that spreads the whole integer range of `like` over `interval`, one step being ``length / (levels)``.

    A signed interval puts zero in the middle, an interval that starts at zero puts it at the least integer.
    """
    qmin, qmax = like.range
    levels = qmax - qmin + 1
    low, high = interval
    zero_point = qmin if low == 0.0 else (qmin + qmax + 1) // 2
    return replace(
        like, qmin=qmin, qmax=qmax, observer="fixed", scale=(high - low) / levels, zero_point=zero_point, axis=None
    )


def _input_spec(op: Op, qconfig: QConfig | None) -> QSpec | None:
    """What the operator asks of its inputs, None where it takes them as they come."""
    if op.family in (Family.WEIGHTED, Family.OBSERVED) and qconfig is not None:
        return qconfig.activation
    return None


def _agree(have: QSpec | None, want: QSpec) -> bool:
    """Whether a tensor that is already quantized serves an operator as it is: the same integers, known beforehand."""
    if have is None or want.range_from is RangeFrom.RUNTIME:
        return False
    return have.dtype == want.dtype and have.range == want.range
