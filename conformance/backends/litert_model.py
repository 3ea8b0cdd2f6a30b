"""Float modules as .tflite models: converted, which takes most of a case's time and is kept on disk, and read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conformance.backend import Task
from conformance.backends.litert_names import Node, Value
from conformance.errors import Unsupported

# What decides a conversion beside the module.
CONVERTERS = ("torch", "torchao", "litert-torch", "litert-converter")
NO_LOWERING = "operators without a lowering"
CHANGED_INPUTS = "modules that change their inputs"
# Files of a few kilobytes each; the oldest go first.
KEPT = 4096
# What the converter says where it, or the runtime, has no such operator.
_REFUSALS = re.compile(
    r"Lowering not found: \S+|failed to legalize operation '\S+'"
    r"|not supported by the native TFLite runtime.*?TF Select ops: \w+",
    re.DOTALL,
)


def float_model(task: Task) -> bytes:
    """The float module of a task as a .tflite model.

    Every target and every QConfig has the same one, so it is kept in a folder for temporary files by a hash of all that
    decides it: the exported program to the last constant, and the versions of the converters. Raises Unsupported for
    operators that the converter does not know.
    """
    import torch

    with _quiet():
        exported = torch.export.export(task.module, task.inputs, strict=False)
    if _changes_inputs(task):
        raise Unsupported("a model has no way to change its inputs", CHANGED_INPUTS)
    folder = Path(tempfile.gettempdir()) / f"conformance-litert-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    place = folder / f"{_key(exported)}.tflite"
    with contextlib.suppress(FileNotFoundError):
        return place.read_bytes()
    content = _converted(task)
    _keep(place, content)
    return content


def _changes_inputs(task: Task) -> bool:
    import torch

    given = tuple(x.clone() for x in task.inputs)
    with torch.no_grad():
        task.module(*given)
    return not all(torch.equal(x, y) for x, y in zip(task.inputs, given, strict=True))


def _converted(task: Task) -> bytes:
    with _quiet():
        import litert_torch

        try:
            return bytes(litert_torch.convert(task.module, task.inputs).model_content())
        except (RuntimeError, ValueError) as error:
            refusal = _REFUSALS.search(str(error))
            if refusal is None:
                raise
            raise Unsupported(f"its converter can't do this: {' '.join(refusal[0].split())}", NO_LOWERING) from error


def _key(exported: Any) -> str:
    """A hash of an exported program: its graph, the tensors that it holds, and who converts it."""
    import torch

    told = hashlib.sha256()
    texts = [str(part.graph) for part in exported.graph_module.modules() if hasattr(part, "graph")]
    texts.append(str(exported.graph_signature))
    texts += [f"{node.name} {node.meta.get('val')}" for node in exported.graph.nodes if node.op == "placeholder"]
    texts += [f"{package} {version(package)}" for package in CONVERTERS]
    for name, value in sorted({**exported.state_dict, **exported.constants}.items()):
        texts.append(
            f"{name} {value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"{name} {value!r}"
        )
        if isinstance(value, torch.Tensor):
            told.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    told.update("\n".join(texts).encode())
    return told.hexdigest()


def _keep(place: Path, content: bytes) -> None:
    """Write a file that others see whole or not at all, and drop the oldest where there are too many."""
    with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".part", delete=False) as file:
        file.write(content)
    os.replace(file.name, place)
    files = [
        (entry.stat().st_mtime, entry.path) for entry in os.scandir(place.parent) if entry.name.endswith(".tflite")
    ]
    for _, path in sorted(files)[: max(0, len(files) - KEPT)]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's progress, which it prints in any case, off standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def nodes_of(content: bytes) -> tuple[Node, ...]:
    """The operators of a model's main graph, in order."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    kinds = _names(schema.BuiltinOperator)
    codes = [kinds[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    made_by = {index: codes[op.opcodeIndex] for op in graph.operators for index in op.outputs}
    values = [_value(schema, model, tensor, made_by.get(i, "")) for i, tensor in enumerate(graph.tensors)]
    unpacked: set[int] = set()
    nodes = []
    for op in graph.operators:
        kind = codes[op.opcodeIndex]
        inputs = tuple(values[i] for i in op.inputs if i >= 0)
        if kind == "DEQUANTIZE" and inputs[0].constant:
            unpacked.update(op.outputs)
        for i in unpacked:
            values[i] = Value(values[i].name, values[i].dtype, True, values[i].elements, "DEQUANTIZE")
        nodes.append(Node(kind, inputs, tuple(values[i] for i in op.outputs), _activation(schema, op)))
    return tuple(nodes)


def _value(schema: Any, model: Any, tensor: Any, made_by: str) -> Value:
    from math import prod

    data = model.buffers[tensor.buffer].data
    shape = [int(size) for size in tensor.shape] if tensor.shape is not None else []
    scales = tensor.quantization.scale if tensor.quantization is not None else None
    step = float(scales[0]) if scales is not None and len(scales) == 1 else None
    constant = not made_by and data is not None and len(data) > 0
    dtype = _names(schema.TensorType)[tensor.type].lower()
    return Value(tensor.name.decode(), dtype, constant, prod(shape), made_by, step)


def _activation(schema: Any, op: Any) -> str:
    """The activation that is part of an operator, by its name in the schema; empty for none."""
    code = getattr(op.builtinOptions, "fusedActivationFunction", 0)
    return _names(schema.ActivationFunctionType)[code] if code else ""


def _names(enumeration: Any) -> dict[int, str]:
    return {code: name for name, code in vars(enumeration).items() if not name.startswith("_")}
