"""Canonical names for what OpenVINO's CPU plug-in really runs, read off its runtime model.

A kernel says which layers of the model it stands for, and of what type its inputs and its results are. One with sums
of products, or a pooling, counts as quantized where its implementation is one for 8-bit integers; one that moves
elements, where it gets them; any other, which computes in registers in float32, where it gets and gives them. A kernel
quantizes where it gives integers and gets none, and dequantizes where it gets some and gives none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conformance.backends.onnx_source import Source
from conformance.backends.qlib import vocabulary

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
_QUANTIZE, _DEQUANTIZE = "quantized::quantize_per_tensor", "quantized::dequantize_per_tensor"


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

    @property
    def weight(self) -> int:
        """How much a kernel has to say of an operator that several stand for: 2 for products, 0 for moves."""
        return 2 * (self.kind in _BY_IMPLEMENTATION) or int(self.kind not in _MOVES)

    @property
    def quantizes(self) -> bool:
        """Whether integers begin in it."""
        return not INTEGERS & set(self.takes) and (self._holds_integers or self.gives_integers)

    @property
    def dequantizes(self) -> bool:
        """Whether integers end in it."""
        return not INTEGERS & set(self.gives) and (self._holds_integers or bool(INTEGERS & set(self.takes)))

    @property
    def _holds_integers(self) -> bool:
        """Whether products of integers are fused in it with the quantization before them and what follows."""
        return self.kind == "Subgraph" and any(layer.endswith(_MOVED_BEHIND) for layer in self.layers)


@dataclass(frozen=True)
class _Ran:
    """An operator that a kernel stands for, alone or with others, the module's node, and how much it has to say."""

    name: str
    module_node: str = ""
    weight: int = 0


def sequence(kernels: Sequence[Kernel], source: Source) -> tuple[str, ...]:
    """The operators that run, in order, by canonical name; `source` is the model that was written."""
    working = [kernel for kernel in kernels if kernel.works]
    made = {value for kernel in working for value in _values(kernel, source)}
    return _once([ran for kernel in working for ran in _ran(kernel, source, made)])


def _once(found: list[_Ran]) -> tuple[str, ...]:
    """The names, one for each of the module's nodes: in float where any that has most to say of it is in float."""
    said: dict[str, list[_Ran]] = {}
    for ran in found:
        if ran.module_node:
            heaviest = said.get(ran.module_node, [ran])[0].weight
            kept = said.get(ran.module_node, []) if ran.weight <= heaviest else []
            said[ran.module_node] = [*kept, ran] if ran.weight >= heaviest else kept
    first = {id(several[0]): sorted(ran.name for ran in several)[0] for several in said.values()}
    return tuple(first.get(id(ran), ran.name) for ran in found if not ran.module_node or id(ran) in first)


def _values(kernel: Kernel, source: Source) -> list[str]:
    """The module's values that a kernel makes, in the order of the module."""
    named = {source.same(layer.partition("/")[0]) for layer in kernel.layers if _PLACE not in layer}
    return [value for value in source.made if value in named and source.operator(value)[0]]


def _one_each(values: list[str], source: Source) -> list[str]:
    """The last value of each of the module's operators: several of ONNX may stand for one."""
    return list({source.operator(value)[1]: value for value in values}.values())


def _ran(kernel: Kernel, source: Source, made: set[str]) -> list[_Ran]:
    """What a kernel does: it quantizes, computes values, dequantizes."""
    values = _one_each(_values(kernel, source), source)
    found = [_Ran(_QUANTIZE)] if kernel.quantizes else []
    taken: set[str] = set()
    for value in values:
        name = source.quantized(value) if _on_integers(kernel, value, values[0]) else source.operator(value)[0]
        if f"{name}_relu" in vocabulary().operators:
            relu = source.relu_after(value, made.difference(values))
            taken.add(relu)
            name += "_relu" if relu else ""
        found += [] if value in taken else [_Ran(name, source.operator(value)[1], kernel.weight)]
    found += [_Ran(_DEQUANTIZE)] if kernel.dequantizes else []
    return found or ([] if _is_border(kernel, source) else [_Ran(f"unmapped:{kernel.kind}")])


def _on_integers(kernel: Kernel, value: str, first: str) -> bool:
    """Whether a kernel computes one of its values on integers; what follows its first one it computes in float32."""
    if {f"{value}{_MOVED_BEHIND}", f"{value}/WithoutBiases{_MOVED_BEHIND}"} & set(kernel.layers):
        return True
    if kernel.kind in _BY_IMPLEMENTATION and value == first:
        return kernel.implementation.lower().endswith(("_i8", "_u8"))
    if kernel.kind in _MOVES:
        return kernel.gets_integers
    return kernel.gets_integers and kernel.gives_integers


def _is_border(kernel: Kernel, source: Source) -> bool:
    """Whether a kernel stands for a quantize or dequantize of the model, which changes no type where it is in float."""
    named = [source.same(layer.partition("/")[0]) for layer in kernel.layers]
    return any(_PLACE in layer for layer in kernel.layers) or any(name in source.made for name in named)
