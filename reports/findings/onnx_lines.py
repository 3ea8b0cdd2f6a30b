"""What the programs about ONNX graphs share: a graph from a few nodes, and its values by each evaluator."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

node, f32 = helper.make_node, np.float32
rng = np.random.default_rng(0)


def draw(*shape, low=-1, high=1):
    """Uniform float32 numbers."""
    return rng.uniform(low, high, shape).astype(f32)


def qdq(x, scale, zero, out, dtype=np.uint8):
    """Quantize x and dequantize it to `out`: the nodes, and the constants that they need."""
    constants = {f"{out}_s": f32(scale), f"{out}_z": dtype(zero)}
    quantize = node("QuantizeLinear", [x, *constants], [f"{out}_q"])
    return [quantize, node("DequantizeLinear", [f"{out}_q", *constants], [out])], constants


def weighted(kind, x, out, weight="w"):
    """A layer `kind` of x and a dequantized weight."""
    return [node("DequantizeLinear", [weight, "ws", "wz"], [f"{out}_w"]), node(kind, [x, f"{out}_w"], [out])], {}


def model(parts, inputs, outputs, **constants):
    """The bytes of a model (opset 21); a part is a node, or nodes with the constants that they need."""
    nodes = []
    for part in parts:
        some, held = part if isinstance(part, tuple) else ([part], {})
        nodes += some
        constants |= held
    x, y = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in e.items()] for e in (inputs, outputs))
    graph = helper.make_graph(nodes, "g", x, y, [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def reference(m, **x):
    """By ONNX's reference evaluator."""
    return ReferenceEvaluator(onnx.load_from_string(m)).run(None, x)[0]


def runtime(m, level="ENABLE", **x):
    """By ONNX Runtime; level DISABLE for no optimizations."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}_ALL")
    return ort.InferenceSession(m, options).run(None, x)[0]


def vino(m, lpt="YES", **x):
    """By OpenVINO; lpt NO for no low precision transformations."""
    import openvino as ov

    core = ov.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": lpt}
    return core.compile_model(core.read_model(m), "CPU", options)(x)[0]


def tell(name, got, want, step):
    """Print how many numbers are off by more than half a quantum, and by how many quanta at most."""
    off = np.abs(got.astype(np.float64) - want) / step
    print(f"{name}: {(off > 0.5).sum()} of {off.size} off, by up to {off.max():.3g} quanta; 0 is right")


def attempt(name, call):
    """Print what a call gives, or what it raises."""
    try:
        print(name, call())
    except Exception as error:
        print(name, "raises", type(error).__name__, " ".join(str(error).split())[-220:])
