"""From the debug to the final form: each operator between a dequantize and a quantize becomes an integer kernel."""

from __future__ import annotations

from torch import fx

from qlib.graph import call, copy_of, finish
from qlib.kernels import Site, call_at
from qlib.regions import all_models
from qlib.sites import replace_sites


def lower(debug: fx.GraphModule) -> fx.GraphModule:
    """Return the final form of a converted graph: integer kernels, integer weights, and float where no kernel fits.

    The graphs of branches and loops are lowered each by itself. A node that takes over from a quantize of the debug
    form carries that node's name in ``meta["replaces"]``; names are those of the node's own graph.
    """
    model = copy_of(debug)
    for part in all_models(model):
        replace_sites(part, _kernel)
    finish(model)
    model.real_recompile()  # the form that is handed out looks like any module, before its first call too
    return model


def _kernel(site: Site) -> fx.Node:
    kernel = call_at(site)
    return call(site.model.graph, kernel.target, *kernel.arguments)
