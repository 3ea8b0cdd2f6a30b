"""Canonical names for what OpenVINO's CPU plug-in really runs, read off its runtime model.

A kernel says which layers of the model it stands for, and of what type its first input and its results are. One with
sums of products, or a pooling, counts as quantized where its implementation is one for 8-bit integers; one that moves
elements, where it gets them; any other, which computes in registers in float32, where it gets and gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conformance.backends.onnx_source import WITH_RELU, Source

INTEGERS = frozenset({"i8", "u8"})
# Kinds of kernels that have implementations of their own for integers.
_BY_IMPLEMENTATION = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "Pooling"})
# Kinds that move or select elements.
_MOVES = frozenset(
    {"Reshape", "Transpose", "Concatenation", "Split", "StridedSlice", "Pad", "Gather", "GatherElements", "Tile"}
    | {"Broadcast", "ShuffleChannels", "DepthToSpace", "SpaceToDepth", "Roll", "ReverseSequence"}
)
# Kinds that make no value: constants, borders of the graph, changes of layout or type.
_NOTHING = frozenset({"Input", "Const", "Output", "Reorder", "Convert", "MemoryInput", "MemoryOutput"})
# What a pass names the dequantization that it moved behind a product of integers.
_MOVED_BEHIND = "/DequantizationMultiply"
# What the quantization tool names the places where it quantizes.
_PLACE = "/fq_"


@dataclass(frozen=True)
class Kernel:
    """One kernel of the runtime model.

    `layers` are the layers of the model that it stands for; `takes` the types of what other kernels give it, without
    constants, and `gives` those of its results.
    """

    kind: str
    implementation: str
    layers: tuple[str, ...]
    takes: tuple[str, ...]
    gives: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether it makes a value of what is given at a call, and not only changes how one is stored."""
        return self.kind not in _NOTHING and bool(self.takes)

    @property
    def gets_integers(self) -> bool:
        """Whether all that other kernels give it are 8-bit integers."""
        return bool(self.takes) and set(self.takes) <= INTEGERS

    @property
    def gives_integers(self) -> bool:
        """Whether all its results are 8-bit integers."""
        return bool(self.gives) and set(self.gives) <= INTEGERS


def sequence(kernels: Sequence[Kernel], source: Source) -> tuple[str, ...]:
    """The operators that run, in order, by canonical name; `source` is the model that was written."""
    working = [kernel for kernel in kernels if kernel.works]
    made = {value for kernel in working for value in _values(kernel, source)}
    found: list[str] = []
    claimed: set[str] = set()
    for kernel in working:
        values = [value for value in _values(kernel, source) if source.operator(value)[1] not in claimed]
        claimed |= {source.operator(value)[1] for value in values}
        found += _names(kernel, _one_each(values, source), source, made)
    return tuple(found)


def _values(kernel: Kernel, source: Source) -> list[str]:
    """The module's values that a kernel makes, in the order of the module."""
    named = {source.same(layer.partition("/")[0]) for layer in kernel.layers if _PLACE not in layer}
    return [value for value in source.made if value in named and source.operator(value)[0]]


def _one_each(values: list[str], source: Source) -> list[str]:
    """The last value of each of the module's operators: several of ONNX may stand for one."""
    return list({source.operator(value)[1]: value for value in values}.values())


def _names(kernel: Kernel, values: list[str], source: Source, made: set[str]) -> list[str]:
    """What a kernel does: it quantizes, computes the values, dequantizes."""
    borders = _borders(kernel, source)
    if not values and not borders:
        return [f"unmapped:{kernel.kind}"]
    enters = "QuantizeLinear" in borders and not INTEGERS & set(kernel.takes)
    names = ["quantized::quantize_per_tensor"] if enters else []
    taken: set[str] = set()
    for value in values:
        name = source.quantized(value) if _on_integers(kernel, value, values[0]) else source.operator(value)[0]
        if name.startswith("quantized::") and name.rpartition("::")[2] in WITH_RELU:
            relu = source.relu_after(value, made.difference(values))
            taken.add(relu)
            name += "_relu" if relu else ""
        names += [] if value in taken else [name]
    leaves = "DequantizeLinear" in borders and not INTEGERS & set(kernel.gives)
    return [*names, "quantized::dequantize_per_tensor"] if leaves else names


def _on_integers(kernel: Kernel, value: str, first: str) -> bool:
    """Whether a kernel computes one of its values on integers; what follows its first one it computes in float32."""
    if {f"{value}{_MOVED_BEHIND}", f"{value}/WithoutBiases{_MOVED_BEHIND}"} & set(kernel.layers):
        return True
    if kernel.kind in _BY_IMPLEMENTATION and value == first:
        return kernel.implementation.lower().endswith(("_i8", "_u8"))
    if kernel.kind in _MOVES:
        return kernel.gets_integers
    return kernel.gets_integers and kernel.gives_integers


def _borders(kernel: Kernel, source: Source) -> set[str]:
    """Which of quantize and dequantize a kernel stands for."""
    named = [source.same(layer.partition("/")[0]) for layer in kernel.layers if _PLACE not in layer]
    kinds = {source.made[name].op_type for name in named if name in source.made}
    places = {"QuantizeLinear" for layer in kernel.layers if _PLACE in layer}
    return (kinds | places) & {"QuantizeLinear", "DequantizeLinear"}
