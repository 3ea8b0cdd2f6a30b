"""Writing a converted model in ONNX: float operators between QuantizeLinear and DequantizeLinear.

The result means what the debug form means, in the operators of ONNX's default domain, with the shapes that the model
was captured with. Engines that know the pattern compute it in integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

try:
    import onnx
    from onnx import helper, numpy_helper
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "writing ONNX needs the package 'onnx', version 1.20 or newer: pip install onnx"
    ) from missing
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qlib.errors import ConversionError
from qlib.graph import op_name
from qlib.onnx.borders import BORDERS, Emit
from qlib.onnx.draft import TYPES, Draft, array_of, refuse, shape_of
from qlib.onnx.inlined import inlined
from qlib.onnx.layers import LAYERS
from qlib.onnx.movement import MOVEMENT
from qlib.onnx.pointwise import POINTWISE
from qlib.onnx.windows import WINDOWS

OPSET = 21
# The version of the file format that came with the opset.
IR_VERSION = 10

EMITTERS: Mapping[str, Emit] = MappingProxyType({**BORDERS, **LAYERS, **POINTWISE, **WINDOWS, **MOVEMENT})


def to_onnx(model: fx.GraphModule, name: str = "model") -> Any:
    """Write the debug form of a model (or its float graph) as an `onnx.ModelProto` of opset 21.

    Inputs are called as the module's arguments, outputs `output_0` and so on, nested outputs flattened. The value of a
    node has the node's name, and each operator says in its documentation which operator and node of the model it stands
    for. The result has passed ONNX's checker with shape inference. Raises ConversionError, naming operator and line,
    for what ONNX can't express.
    """
    model = inlined(model)
    draft = Draft(model)
    inputs, outputs = [], []
    for node in model.graph.nodes:
        if node.op == "placeholder":
            draft.names[node] = draft.fresh(str(node.target))
            inputs.append(_value_info(draft.names[node], node))
        elif node.op == "output":
            outputs = _outputs(draft, node)
        else:
            draft.names[node] = _emit(draft, node)
    nodes, constants = _needed(draft, [output.name for output in outputs])
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    written = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    written.producer_name = "qlib"
    try:
        onnx.checker.check_model(written, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"ONNX's checker refuses what was written: {error}") from error
    return written


def _emit(draft: Draft, node: fx.Node) -> Any:
    if node.op == "get_attr":
        name = draft.fresh(str(node.target))
        draft.constants[name] = numpy_helper.from_array(array_of(draft.stored(node)), name)
        return name
    if not node.all_input_nodes and isinstance(made := node.target(*node.args, **node.kwargs), Tensor):  # type: ignore[operator]
        return draft.constant(made, node.name)
    emit = EMITTERS.get(op_name(node))
    if emit is None:
        raise refuse(node, "no counterpart is known")
    start = len(draft.nodes)
    result = emit(draft, node)
    for written in draft.nodes[start:]:
        written.doc_string = f"{op_name(node)} {node.name}"
    return result


def _needed(draft: Draft, outputs: list[str]) -> tuple[list[Any], list[Any]]:
    """The operators and constants that the outputs depend on, in order."""
    needed, nodes = set(outputs), []
    for node in reversed(draft.nodes):
        if needed & set(node.output):
            nodes.append(node)
            needed.update(node.input)
    return nodes[::-1], [constant for name, constant in draft.constants.items() if name in needed]


def _value_info(name: str, node: fx.Node) -> Any:
    return helper.make_tensor_value_info(name, TYPES[node.meta["dtype"]], shape_of(node))


def _outputs(draft: Draft, node: fx.Node) -> list[Any]:
    """Name the outputs; one that is an input, a constant or used twice gets an ``Identity``."""
    found = []
    for number, leaf in enumerate(pytree.tree_leaves(node.args[0])):
        if not isinstance(leaf, fx.Node):
            raise ConversionError(f"expected tensors as outputs, found {type(leaf).__name__}: return tensors only")
        name = draft.add("Identity", [draft.value(leaf, leaf)], f"output_{number}")
        found.append(_value_info(name, leaf))
    return found
