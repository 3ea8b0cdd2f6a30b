"""The reference evaluator of ONNX: what the standard itself says that a graph computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task
from conformance.backends import onnx_names
from conformance.backends.given import given_graph
from conformance.backends.onnx_source import feeds, text
from conformance.environment import installed

PACKAGES = ("onnx", "torch")


def backend(target: str) -> Backend:
    """The reference evaluator of ONNX, for graphs that are given; it has no targets."""
    return OnnxReference()


@dataclass(frozen=True)
class OnnxReference:
    """The evaluator that comes with ONNX, which computes each operator as it stands."""

    def about(self) -> About:
        """Versions; it quantizes nothing itself."""
        versions, missing = installed(PACKAGES)
        return About(
            name="onnx-reference",
            versions=versions,
            modes=frozenset({"numerics"}),
            captures=frozenset({"export", "trace", "script"}),
            missing=missing,
        )

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Load the given graph."""
        given = given_graph(task, stage)
        with stage("compile"):
            program = evaluator(given.model)
        return given.judged(program)


def evaluator(model: Any) -> Program:
    """A model that the reference evaluates, operator by operator."""
    from onnx.reference import ReferenceEvaluator

    ready = ReferenceEvaluator(model)

    def call(*inputs: Any) -> Any:
        import numpy as np
        import torch

        return tuple(torch.from_numpy(np.array(result)) for result in ready.run(None, feeds(model, inputs)))

    return Program(
        call,
        onnx_names.sequence(onnx_names.read(model, model)),
        Counter(node.op_type for node in model.graph.node),
        graph=text(model),
    )
