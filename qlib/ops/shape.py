"""Operators that move data and compute nothing: they run on the stored integers as they are."""

from __future__ import annotations

from qlib.ops.op import Family, Op

_MOVES = {
    "reshape": "the same elements in another shape",
    "flatten": "several dimensions merged into one",
    "unflatten": "one dimension divided into several",
    "permute": "dimensions in another order",
    "transpose": "two dimensions exchanged",
    "squeeze": "dimensions of size one removed",
    "unsqueeze": "a dimension of size one added",
    "slice": "a range of indices along one dimension",
    "select": "one index along one dimension",
    "chunk": "pieces along one dimension, by their number",
    "split": "pieces along one dimension, by their size",
    "split_with_sizes": "pieces along one dimension, by a list of sizes",
    "repeat": "copies side by side",
    "expand": "dimensions of size one widened",
    "pixel_shuffle": "channels laid out as a finer grid",
    "pixel_unshuffle": "a grid laid out as more channels",
    "channel_shuffle": "channels of several groups interleaved",
    "roll": "elements moved along dimensions, those at the end to the beginning",
    "flip": "dimensions in reverse",
    "rot90": "turns by right angles",
    "tile": "copies side by side, by as few dimensions as are given",
    "unbind": "all indices along one dimension",
    "tensor_split": "pieces along one dimension, as even as they can be",
}

# By the position of their indices, which are integers as they come.
_PICKS = {
    "index": (1, "elements at given indices, or where a mask is true"),
    "index_select": (2, "given indices along one dimension"),
    "gather": (2, "elements at given indices along one dimension"),
}

OPS = (
    *(Op(f"quantized::{name}", Family.SHARED, (f"aten::{name}",), "move", doc) for name, doc in _MOVES.items()),
    *(
        Op(f"quantized::{name}", Family.SHARED, (f"aten::{name}",), "move", doc, others=(position,))
        for name, (position, doc) in _PICKS.items()
    ),
    Op(
        "quantized::repeat_interleave",
        Family.SHARED,
        ("aten::repeat_interleave",),
        "move",
        "each element several times",
        overload="self_int",
    ),
    Op("quantized::getitem", Family.SHARED, ("getitem",), "move", "one tensor out of a list"),
    Op(
        "quantized::constant_pad_nd",
        Family.SHARED,
        ("aten::constant_pad_nd",),
        "pad",
        "padding with real zeros, which are stored as the zero point",
        zero_at=2,
    ),
)
