"""A backend in any language, `--backend "exec:COMMAND"`: a program that runs given graphs, by JSON lines.

The protocol is in docs/protocol.md. The suite's own worker builds the case and judges it; the program gets the
quantized graph and its inputs, and gives outputs and the operators that it ran.
"""

from __future__ import annotations

import base64
import functools
import math
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conformance.backend import About, Backend, Program, Quantized, Stage, Task, about_of
from conformance.backends.qlib import vocabulary
from conformance.channel import Channel
from conformance.errors import Crashed, EnvironmentTrouble, Inexpressible, Unsupported, UsageError

if TYPE_CHECKING:
    from torch import Tensor

HELLO_SECONDS = 60.0
CAPTURES = ["export", "trace", "script"]


def backend(target: str) -> Backend:
    """Any program that speaks the protocol of docs/protocol.md and runs given graphs: `exec:COMMAND`."""
    if not target:
        raise UsageError("backend exec: expected a command after the colon, as in 'exec:node backend.js'")
    return External(tuple(shlex.split(target)))


@dataclass
class External:
    """A program, started when it is first needed and again where it has died."""

    command: tuple[str, ...]
    _channel: Channel | None = field(default=None)
    _about: About | None = field(default=None)

    def about(self) -> About:
        """The program's hello. Raises EnvironmentTrouble where it has none."""
        if self._about is None:
            self._about = self._started()[1]
        return self._about

    def quantize(self, task: Task, stage: Stage) -> Quantized:
        """Have the program load the given graph."""
        from conformance.backends.given import given_graph

        given = given_graph(task, stage)
        with stage("compile"):
            answer = self._ask({"load": written_graph(given.model)}, "loaded")
            loaded = answer if isinstance(answer, dict) else {}
            known = vocabulary()
            names = known.operators | known.float_operators
            ops = tuple(name if name in names else f"unmapped:{name}" for name in map(str, loaded.get("ops", ())))
            program = Program(self._run, ops, dict(loaded.get("native", {})), graph=str(loaded.get("graph", "")))
        return given.judged(program)

    def _run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self._ask({"run": [written(x) for x in inputs]}, "outputs")
        return tuple(read(tensor) for tensor in outputs)

    def _ask(self, message: dict[str, Any], expected: str) -> Any:
        """Send a message and take the answer to it; the deadline is that of the process we are in."""
        if self._channel is None or self._channel.ended:
            self._channel, _ = self._started()
        self._channel.send(message)
        answer = self._channel.receive(math.inf)
        print(self._channel.printed(), file=sys.stderr)
        if answer is None:
            raise Crashed(f"{shlex.join(self.command)}: {self._channel.death()}")
        if "unsupported" in answer:
            raise Unsupported(str(answer["unsupported"]), str(answer.get("feature", "")))
        if expected not in answer:
            raise RuntimeError(f"expected {expected!r}, found {str(answer.get('failed', answer))[:4000]}")
        return answer[expected]

    def _started(self) -> tuple[Channel, About]:
        pipe = subprocess.PIPE
        try:
            # In our group, so that it is killed with us.
            process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise EnvironmentTrouble(f"{shlex.join(self.command)} can't be started ({error})") from error
        channel = Channel(process)
        try:
            answer = channel.receive(time.monotonic() + HELLO_SECONDS)
            if answer is None:
                raise ValueError(f"it ended before its hello: {channel.death()}\n{channel.printed()}")
            if not isinstance(hello := answer.get("hello"), dict):
                raise ValueError(f"expected a hello, found {str(answer)[:200]}")
            return channel, about_of({"modes": ["numerics"], "captures": CAPTURES, **hello})
        except (TimeoutError, ValueError) as error:
            channel.close()
            why = str(error) or f"no hello within {HELLO_SECONDS:g} s"
            raise EnvironmentTrouble(f"{shlex.join(self.command)}: {why}") from error


@functools.cache
def _types() -> dict[str, Any]:
    import torch

    names = ("float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
    return {name: getattr(torch, name) for name in names}


def written(x: Any) -> dict[str, Any]:
    """A tensor or an array as JSON: its type, its shape, and its little-endian bytes in row-major order in base64."""
    import numpy as np

    values = np.ascontiguousarray(x)
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "data": base64.b64encode(data).decode()}


def read(given: Any) -> Tensor:
    """The tensor that `written` wrote; raises ValueError for what is none."""
    import numpy as np
    import torch

    try:
        dtype = np.dtype(str(given["dtype"])) if given["dtype"] in _types() else None
        if dtype is None:
            raise ValueError(f"expected a type out of {', '.join(_types())}, found {given['dtype']!r}")
        values = np.frombuffer(base64.b64decode(given["data"], validate=True), dtype.newbyteorder("<"))
        return torch.from_numpy(values.astype(dtype).reshape([int(size) for size in given["shape"]]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected a tensor as dtype, shape and data, found {str(given)[:200]} ({error})") from error


def written_graph(model: Any) -> dict[str, Any]:
    """An ONNX graph as JSON. Raises Inexpressible for one that has graphs within it."""
    from onnx import numpy_helper

    return {
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
        "constants": {tensor.name: written(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer},
        "nodes": [
            {
                "op": node.op_type,
                "inputs": list(node.input),
                "outputs": list(node.output),
                "attributes": {attribute.name: _attribute(attribute) for attribute in node.attribute},
                "source": node.doc_string,
            }
            for node in model.graph.node
        ],
    }


def _attribute(attribute: Any) -> Any:
    import onnx
    from onnx import numpy_helper

    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return written(numpy_helper.to_array(value))
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (int, float)):
        return value
    if all(isinstance(each, (int, float)) for each in value):
        return list(value)
    raise Inexpressible(f"the attribute {attribute.name}: graphs within graphs are not written in JSON")
