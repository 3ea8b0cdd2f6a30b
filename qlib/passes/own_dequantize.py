"""A dequantize for each operator of its own, so that a backend finds it beside the operator that it fuses it with."""

from __future__ import annotations

import torch
from torch import fx

_DEQUANTIZE = (torch.ops.qlib.dequantize_per_tensor.default, torch.ops.qlib.dequantize_per_channel.default)


def own_dequantize(model: fx.GraphModule) -> fx.GraphModule:
    """Give each operator that a quantizer annotated its own dequantize where several take one, in place.

    Those that it did not annotate go on sharing one, and so do all where the range is chosen at run time.
    """
    for node in list(model.graph.nodes):
        if node.target not in _DEQUANTIZE or len(node.users) < 2:
            continue
        for user in list(node.users):
            if user.meta.get("annotated"):
                with model.graph.inserting_after(node):
                    own = model.graph.call_function(node.target, node.args)
                own.meta = dict(node.meta)
                user.replace_input_with(node, own)
        if not node.users:
            model.graph.erase_node(node)
    model.recompile()
    return model
