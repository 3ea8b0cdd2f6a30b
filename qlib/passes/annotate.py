"""Deciding what is quantized: one decision for each tensor, read off the operator table and the QConfigs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from torch import fx

from qlib.errors import QConfigError
from qlib.given import NOTHING, Given, by_group, describe, sources
from qlib.graph import op_name
from qlib.groups import Groups
from qlib.ops import BY_HEAD, Family, Op, When
from qlib.qconfig import QConfig, QConfigMapping
from qlib.qparams import ROW, QSpec, RangeFrom
from qlib.regions import Region, all_models, inner_model, region_in
from qlib.rewrite import Match, find, misfit


@dataclass(frozen=True)
class Placement:
    """One tensor to be quantized.

    `users` are the nodes that get the quantized tensor, perhaps in graphs within the value's; None stands for all in
    its own graph. Placements with the same `group` have the same parameters. `watches` is whether the data at this
    place widens the group's range; where it is only what another place has seen, it doesn't need to.
    """

    value: fx.Node
    spec: QSpec
    users: tuple[fx.Node, ...] | None
    group: Hashable | None
    watches: bool = True


@dataclass(frozen=True)
class Annotation:
    """What will be quantized: the operators found, where activations and weights are, the rules that matched no module.

    A weight is placed once for each operator that takes it, since each has its own input's scale beside it. The biases
    of the operators in `float_biases` are to be floats in the debug form; those of others are stored as integers.
    `refused` says, for the first node of an operator, why a row that fits it was not taken.
    """

    matches: tuple[Match, ...] = ()
    placements: tuple[Placement, ...] = ()
    weights: tuple[Placement, ...] = ()
    unused_rules: tuple[str, ...] = ()
    float_biases: tuple[fx.Node, ...] = ()
    refused: Mapping[fx.Node, str] = field(default_factory=dict)


@dataclass
class _Found:
    """What was found so far: operators, what is quantized and how, which values share their parameters.

    `crossed` are the values that came quantized into a graph or out of one; `outside` has the operand that a
    placeholder stands for, for all but the values that a loop carries. `given` is what is known beforehand.
    """

    given: Mapping[fx.Node, Given]

    matches: list[Match] = field(default_factory=list)
    produced: dict[fx.Node, QSpec] = field(default_factory=dict)
    groups: Groups[fx.Node] = field(default_factory=Groups)
    crossed: list[fx.Node] = field(default_factory=list)
    outside: dict[fx.Node, fx.Node] = field(default_factory=dict)
    refused: dict[fx.Node, str] = field(default_factory=dict)

    def copy(self) -> _Found:
        """The same, to be changed on its own."""
        return _Found(
            self.given,
            list(self.matches),
            dict(self.produced),
            self.groups.copy(),
            list(self.crossed),
            dict(self.outside),
            dict(self.refused),
        )

    def cross(self, known: fx.Node, arrived: fx.Node) -> None:
        """A quantized value gets another name in another graph."""
        self.produced[arrived] = self.produced[known]
        self.groups.union(known, arrived)
        self.crossed.append(arrived)


def annotate(model: fx.GraphModule, mapping: QConfigMapping, given: Mapping[fx.Node, Given] = NOTHING) -> Annotation:
    """Decide which operators run on integers and how each tensor between them is quantized.

    The decision follows the flow of values, not the order of the nodes. A tensor that an integer operator makes has
    that operator's description; a float tensor that such an operator needs is quantized for it, once for each
    description asked for. Branches and loops are part of the flow: what they yield is quantized where all that may
    be yielded is quantized alike. Inputs and constants with `given` parameters are quantized from the start, and all
    that shares its parameters with a tensor has those that are given for it. Raises QConfigError for what can't be so.
    """
    qconfigs = {node: _qconfig(node, mapping) for part in all_models(model) for node in part.graph.nodes}
    found = _Found(given, produced=sources(given))
    _find_operators(model, qconfigs, found)
    settled = _settle(found)
    placements = _given_placements(found)
    placements += [
        Placement(
            match.tail,
            found.produced[match.tail],
            None,
            found.groups.find(match.tail),
            match.op.family is not Family.SHARED,
        )
        for match in found.matches
        if match.tail in found.produced and "dtype" in match.tail.meta  # a list is not observed, its items are
    ]
    placements += [
        Placement(node, found.produced[node], None, found.groups.find(node), False) for node in found.crossed
    ]
    wanted: dict[tuple[fx.Node, QSpec], list[tuple[fx.Node, fx.Node]]] = {}
    for match in found.matches:
        spec = _input_spec(match.op, qconfigs[match.head])
        for value in dict.fromkeys(match.operands):
            if spec is None or found.groups.find(value) in settled:
                continue
            if not _agree(found.produced.get(value), spec):
                wanted.setdefault((_names_of(value, spec, found)[-1], spec), []).append((value, match.head))
    for (_, spec), uses in wanted.items():
        place = _innermost([_names_of(value, spec, found) for value, _ in uses])
        placements.append(Placement(place, spec, tuple(user for _, user in uses), None))
    weights = [place for match in found.matches for place in _weights(match, qconfigs[match.head], given)]
    modules = {(str(n.meta.get("module_path", "")), str(n.meta.get("module_type", ""))) for n in qconfigs}
    unused = mapping.unused(modules)
    return Annotation(tuple(found.matches), tuple(placements), tuple(weights), unused, refused=found.refused)


def _names_of(value: fx.Node, spec: QSpec, found: _Found) -> list[fx.Node]:
    """The names of a float value from the graph where it is used out to the graph that makes it.

    What is quantized by its range at run time, or anew, is quantized where it is used.
    """
    names = [value]
    while names[-1] in found.outside and value not in found.produced and spec.range_from is not RangeFrom.RUNTIME:
        names.append(found.outside[names[-1]])
    return names


def _innermost(names: list[list[fx.Node]]) -> fx.Node:
    """The innermost name of a value that all its users can have it from."""
    return next(name for name in names[0] if all(name in others for others in names))


def _weights(match: Match, qconfig: QConfig | None, given: Mapping[fx.Node, Given]) -> list[Placement]:
    if qconfig is None or qconfig.weight is None:
        return []
    spec = qconfig.weight
    spec = spec if spec.axis is None else replace(spec, axis=match.weight_axis)
    return [
        Placement(value, _weight_spec(match, given[value]) if value in given else spec, (match.head,), None)
        for value in match.weights
    ]


def _weight_spec(match: Match, given: Given) -> QSpec:
    """The given parameters of a weight; sums of integers have one scale for each channel of the result."""
    spec = given.spec
    if spec is None or (isinstance(spec.scale, tuple) and spec.axis != match.weight_axis):
        axis = "" if match.weight_axis is None else f", or one per channel along axis {match.weight_axis},"
        found = "a float" if spec is None else f"some along axis {spec.axis}"
        raise QConfigError(f"expected one scale{axis} for {given.name!r}, the weight of {match.op.name}, found {found}")
    return spec


def _settle(found: _Found) -> dict[fx.Node, QSpec]:
    """Have all that shares its parameters with a given tensor use these; returns them by the group's leader."""
    for node, stated in found.given.items():
        if stated.spec is not None and node not in found.produced:
            reason = f": {found.refused[node]}" if node in found.refused else ""
            raise QConfigError(
                f"{stated.name!r} is to be {describe(stated.spec)}, but {op_name(node) or node} that makes it, "
                f"at {node.meta.get('source') or 'an unknown line'}, stays in float{reason}"
            )
    settled = by_group(found.given, found.groups)
    for node in found.produced:
        found.produced[node] = settled.get(found.groups.find(node), found.produced[node])
    return settled


def _given_placements(found: _Found) -> list[Placement]:
    """Where the given inputs and constants are quantized; weights are placed with the operators that take them."""
    weights = {value for match in found.matches for value in match.weights}
    return [
        Placement(node, spec, None, found.groups.find(node))
        for node, spec in sources(found.given).items()
        if node not in weights
    ]


def _qconfig(node: fx.Node, mapping: QConfigMapping) -> QConfig | None:
    return mapping.resolve(str(node.meta.get("module_path", "")), str(node.meta.get("module_type", "")))


def _find_operators(model: fx.GraphModule, qconfigs: Mapping[fx.Node, QConfig | None], found: _Found) -> None:
    taken: set[fx.Node] = set()

    def accept(match: Match) -> bool:
        stated = found.given.get(match.tail)
        as_float = stated is not None and stated.spec is None
        reason = "its result is to be a float" if as_float else _refusal(match, qconfigs, found.produced)
        if reason and (match.head not in found.refused or found.refused[match.head] in _MISSING.values()):
            found.refused[match.head] = reason  # that another row is for another time says least
        return not reason

    for node in model.graph.nodes:
        region = region_in(model, node)
        if region is not None:
            _follow(model, region, qconfigs, found)
            continue
        if node in taken:
            continue
        if (match := find(node, accept)) is None:
            _check_not_asked_for(node, qconfigs[node])
            continue
        found.matches.append(match)
        taken.update(match.nodes)
        result = _result_spec(match, qconfigs[node], found)
        if result is not None:
            found.produced[match.tail] = result
            if match.op.family is Family.SHARED:
                found.groups.union(match.operands[0], match.tail)


def _check_not_asked_for(node: fx.Node, qconfig: QConfig | None) -> None:
    """Raise QConfigError for an operator that a QConfig asks for by its kind of weight, with what no kernel takes."""
    if qconfig is None:
        return
    for op in BY_HEAD.get(op_name(node), ()):
        if op.none_at is None or node.args[op.none_at : op.none_at + 1] in ((), (None,)):
            continue
        if op.when is when_of(qconfig.activation) and takes_weight(op, qconfig.weight):
            path, source = node.meta.get("module_path", ""), node.meta.get("source") or "an unknown line"
            raise QConfigError(
                f"{op_name(node)} of {path!r} at {source} can't be quantized: {misfit(op, node)}; "
                "make the module without it, or leave it in float by a QConfig of None"
            )


def _follow(model: fx.GraphModule, region: Region, qconfigs: Mapping[fx.Node, QConfig | None], found: _Found) -> None:
    """Follow the values into a region and out of it.

    A value that a loop carries is quantized where each round gives it as the first one got it; that is assumed of all
    of them first, and of fewer where it proves wrong.
    """
    carried = [n for n in range(region.carried) if region.operands[n] in found.produced]
    while True:
        trial = found.copy() if carried else found
        _enter(model, region, carried, qconfigs, trial)
        agreed = [n for n in carried if _yields(region, n, trial) == trial.produced[region.operands[n]]]
        if agreed == carried:
            break
        carried = agreed
    vars(found).update(vars(trial))
    for position in carried if region.carried else region.results:
        if _yields(region, position, found) is None:
            continue
        first, *others = region.yielded(position)
        for other in (*others, *(region.entries(position) if region.carried else ())):
            found.groups.union(first, other)
        for node in region.taken(position):
            found.cross(first, node)


def _enter(
    model: fx.GraphModule,
    region: Region,
    carried: list[int],
    qconfigs: Mapping[fx.Node, QConfig | None],
    found: _Found,
) -> None:
    for position, operand in enumerate(region.operands):
        for entry in region.entries(position):
            if position >= region.carried:
                found.outside[entry] = operand
            if operand in found.produced and (position >= region.carried or position in carried):
                found.cross(operand, entry)
    for reference in region.references:
        _find_operators(inner_model(model, reference), qconfigs, found)


def _yields(region: Region, position: int, found: _Found) -> QSpec | None:
    """How a result is quantized, None where it isn't, or not alike in all graphs that may give it."""
    first, *others = (found.produced.get(node) for node in region.yielded(position))
    return first if all(other == first for other in others) else None


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
    when = when_of(qconfig.activation)
    if op.when is not when:
        return _MISSING[when]
    if op.weight is not None and not takes_weight(op, qconfig.weight):
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


def takes_weight(op: Op, weight: QSpec | None) -> bool:
    """Whether the operator has a kernel for weights of this kind; sums of integers have one scale per channel."""
    return (
        weight is not None
        and weight.dtype in op.weight_types
        and (weight.group_size is None or op.when is When.WEIGHT_ONLY)
    )


def when_of(activation: QSpec | None) -> When:
    """When the range of an operator's inputs is known, from how these are quantized; None stands for floats."""
    if activation is None:
        return When.WEIGHT_ONLY
    if activation.range_from is not RangeFrom.RUNTIME:
        return When.STATIC
    return When.PER_TOKEN if activation.group_size == ROW else When.DYNAMIC


def _result_spec(match: Match, qconfig: QConfig | None, found: _Found) -> QSpec | None:
    """How the results are quantized, None where they stay in float."""
    if match.op.family is Family.SHARED:
        return found.produced[match.operands[0]]
    if match.tail in found.given:
        return found.given[match.tail].spec
    if match.op.interval is not None:
        return fixed_spec(found.produced[match.operands[0]], match.op.interval)
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
