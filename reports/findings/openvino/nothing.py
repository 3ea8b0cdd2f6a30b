"""Rows of a table by no indices: the process dies of SIGFPE. `nothing.py u8` or `nothing.py f32`; (0, 5) is right."""

import sys

from onnx_lines import *

dtype = {"u8": np.uint8, "f32": np.float32}[sys.argv[1]]
held = {"w": np.arange(20).reshape(4, 5).astype(dtype)}
nodes = [node("Gather", ["w", "i"], ["y"])]
if dtype is np.uint8:
    nodes = [node("DequantizeLinear", ["w", "s", "z"], ["t"]), node("Gather", ["t", "i"], ["y"])]
    held |= {"s": f32(0.1), "z": np.uint8(3)}
index = helper.make_tensor_value_info("i", TensorProto.INT64, [0])
rows = helper.make_tensor_value_info("y", TensorProto.FLOAT, [0, 5])
graph = helper.make_graph(nodes, "g", [index], [rows], [numpy_helper.from_array(np.asarray(v), n) for n, v in held.items()])
m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
print("ONNX Runtime", runtime(m, i=np.zeros(0, np.int64)).shape, flush=True)
print("OpenVINO", vino(m, i=np.zeros(0, np.int64)).shape)
