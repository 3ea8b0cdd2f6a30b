"""OpenVINO: the kernels of its CPU plug-in on given graphs, and its own quantization tool NNCF on the float module."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task
from conformance.backends import nncf, openvino_names
from conformance.backends.given import given_graph
from conformance.backends.onnx_source import feeds, source_of, text
from conformance.backends.openvino_names import Kernel
from conformance.backends.qlib import float_model, operators_of
from conformance.environment import installed
from conformance.errors import Unsupported
from conformance.vocabulary import Mode

PACKAGES = ("openvino", "onnx", "torch")
# Quantizes float modules; graphs that are given run without it.
QUANTIZER = "nncf"
# Whether low precision transformations rewrite a graph for kernels on integers before it runs.
TARGETS: Mapping[str, str] = MappingProxyType({"lpt": "YES", "no-lpt": "NO"})


def backend(target: str) -> Backend:
    """OpenVINO on the CPU; targets: `lpt`, low precision transformations (the default), and `no-lpt`."""
    return OpenVino(target)


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO with or without low precision transformations."""

    transformations: str

    def about(self) -> About:
        """Versions, and what can be asked of it."""
        versions, missing = installed((*PACKAGES, QUANTIZER))
        return About(
            name="openvino",
            versions=versions,
            modes=frozenset({"static", "numerics"}),
            captures=frozenset({"export"}),  # each gives the same graph, which is all that it gets
            lacks=nncf.LACKS | ({QUANTIZER} & {*missing}),
            missing=tuple(package for package in missing if package != QUANTIZER),
        )

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Have NNCF quantize the module, written in ONNX, and compile that; or compile a graph as it is given."""
        if task.mode == Mode.NUMERICS:
            given = given_graph(task, stage)
            with stage("compile"):
                return given.judged(compiled(_read(given.model), given.model, self.transformations))
        with stage("capture"):
            source = float_model(task)
        with stage("quantize"):
            if QUANTIZER in self.about().lacks:
                raise Unsupported(f"not installed: {QUANTIZER}", QUANTIZER)
            model = nncf.quantized(_read(source), source, task)
        with stage("compile"):
            final = compiled(model, source, self.transformations)
        return Quantized(float_ops=operators_of(source), final=final, float_graph=text(source))


def _read(model: Any) -> Any:
    """An ONNX model as OpenVINO's own."""
    return core().read_model(model.SerializeToString())


@functools.cache
def core() -> Any:
    """The runtime with its plug-ins, made once."""
    import openvino

    return openvino.Core()


def compiled(model: Any, source: Any, transformations: str) -> Program:
    """A model that can be run, with the kernels that it really runs; `source` is the ONNX model it was made from.

    What is left in float is computed in float32: the plug-in would choose bfloat16 itself on some processors.
    """
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "LP_TRANSFORMS_MODE": TARGETS[transformations],
    }
    ready = core().compile_model(model, "CPU", settings)
    nodes = ready.get_runtime_model().get_ordered_ops()
    kernels = [kernel_of(node) for node in nodes]

    def call(*inputs: Any) -> Any:
        import torch

        known = {name for port in ready.inputs for name in port.get_names()}
        results = ready({name: x for name, x in feeds(source, inputs).items() if name in known})
        return tuple(torch.from_numpy(results[port].copy()) for port in ready.outputs)

    return Program(
        call,
        openvino_names.sequence(kernels, source_of(source)),
        Counter(f"{kernel.kind}:{kernel.implementation}" for kernel in kernels if kernel.works),
        graph="\n".join(map(_line, nodes)),
    )


def kernel_of(node: Any) -> Kernel:
    """One node of a runtime model."""
    return Kernel(
        kind=_said(node, "layerType"),
        implementation=_said(node, "primitiveType"),
        layers=tuple(name for name in _said(node, "originalLayersNames").split(",") if name),
        takes=tuple(_type(port) for port in map(_source, node.inputs()) if not _constant(port.get_node())),
        gives=_types(node),
    )


def _source(port: Any) -> Any:
    """The result that an input takes."""
    return port.get_source_output()


def _type(port: Any) -> str:
    """The type of a result."""
    return str(port.get_element_type().get_type_name())


def _constant(node: Any) -> bool:
    """Whether a node is the same at every call."""
    given = [_source(port).get_node() for port in node.inputs()]
    return _said(node, "layerType") == "Const" or (bool(given) and all(map(_constant, given)))


def _said(node: Any, key: str) -> str:
    return str(node.rt_info[key].astype(str))


def _types(node: Any) -> tuple[str, ...]:
    """The types of a node's results."""
    return tuple(map(_type, node.outputs()))


def _line(node: Any) -> str:
    inputs = ", ".join(_source(port).get_node().get_friendly_name() for port in node.inputs())
    kind = f"{_said(node, 'layerType')}:{_said(node, 'primitiveType')}"
    return f"{node.get_friendly_name()}:{','.join(_types(node))} = {kind}({inputs})"
