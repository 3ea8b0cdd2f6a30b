"""What branches and loops are handed: each value once, no constants, and nothing that they don't use."""

from __future__ import annotations

from torch import fx

from qlib.frontends.normalize import remove_dead_code
from qlib.graph import get_attr
from qlib.regions import Region, drop_unused_operands, references, region_of, set_results


def tidy(graph: fx.Graph, written: frozenset[str] = frozenset()) -> None:
    """Give the graphs within `graph` their constants for their own and take from them what nobody uses, in place.

    The tensors named in `written` change and stay operands.
    """
    if not any(references(graph)):
        return
    remove_dead_code(graph)
    for node in list(graph.nodes):
        region = region_of(node, lambda reference: reference.meta["graph"])
        if region is None:
            continue
        if not region.carried:
            set_results(region, [position for position in region.results if region.taken(position)])
        for position in range(region.carried, len(region.operands)):
            _merge_or_sink(region, position, written)
        for inner in region.graphs:
            tidy(inner, written)
            remove_dead_code(inner)
        drop_unused_operands(region)
    remove_dead_code(graph)


def _merge_or_sink(region: Region, position: int, written: frozenset[str]) -> None:
    """Put an operand's first name in the place of its second, and a constant of its own in that of one from outside."""
    operand = region.operands[position]
    first = region.operands.index(operand, region.carried)
    for number, entry in enumerate(region.entries(position)):
        if first != position:
            entry.replace_all_uses_with(region.entries(first)[number])
        elif operand.op == "get_attr" and str(operand.target) not in written and entry.users:
            with entry.graph.inserting_before(entry):
                own = get_attr(entry.graph, str(operand.target))
            own.meta.update(operand.meta)
            for user in entry.users:
                if not user.meta.get("module_path"):  # as where torch.export has lost it
                    user.meta["module_path"] = operand.meta.get("module_path", "")
            entry.replace_all_uses_with(own)
