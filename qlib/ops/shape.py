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
}

OPS = (
    *(Op(f"quantized::{name}", Family.SHARED, (f"aten::{name}",), "move", doc) for name, doc in _MOVES.items()),
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
