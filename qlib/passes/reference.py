"""From the debug to the reference form: the same integers as the final form, spelled out in ATen operators alone."""

from __future__ import annotations

from torch import fx

from qlib.graph import copy_of, drop_unused_nodes, finish
from qlib.regions import all_models
from qlib.sites import replace_sites
from qlib.spelled import BORDERS, REWRITES


def reference(debug: fx.GraphModule) -> fx.GraphModule:
    """Return the reference form of a converted graph: integers as in the final form, in ATen operators only.

    It equals the final form but for ties, and `qlib.implementation("reference")` exactly. Operators that are not
    quantized stay in float between a dequantize and a quantize, as in the final form. Inputs of any batch size are
    taken where the debug form takes them. A range that is chosen at run time is not checked for infinity and NaN. As in
    the final form, ``meta["replaces"]`` names the debug node that a node takes the place of.
    """
    model = copy_of(debug)
    for part in all_models(model):
        _rewrite(part)
    finish(model)
    model.real_recompile()
    return model


def _rewrite(model: fx.GraphModule) -> None:
    replace_sites(model, lambda site: REWRITES[site.match.op.kernel](site))
    drop_unused_nodes(model.graph)
    for node in list(model.graph.nodes):
        if node.target in BORDERS:
            _spell(model.graph, node)


def _spell(graph: fx.Graph, node: fx.Node) -> None:
    with graph.inserting_before(node):
        new = BORDERS[node.target](graph, node)
    if isinstance(new, fx.Node):
        new.meta = {**node.meta, "replaces": node.name}
        node.replace_all_uses_with(new)
    else:
        for item in list(node.users):
            item.replace_all_uses_with(new[item.args[1]])  # type: ignore[index]
            graph.erase_node(item)
    graph.erase_node(node)
