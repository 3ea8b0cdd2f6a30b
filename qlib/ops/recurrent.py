"""Recurrent layers, whose inputs and hidden states are quantized by their ranges at run time, step by step.

Single cells have no rows: capture writes them as linear layers and element-wise operators.
"""

from __future__ import annotations

from qlib.ops.op import Family, Op, When

_NAMES = {
    "lstm": "layers of long short-term memory, their products in integers",
    "gru": "layers of gated recurrent units, their products in integers",
    "rnn_tanh": "plain recurrent layers with tanh, their products in integers",
    "rnn_relu": "plain recurrent layers with relu, their products in integers",
}

OPS = tuple(
    Op(
        f"quantized::{name}_dynamic",
        Family.WEIGHTED,
        (f"aten::{name}",),
        "recurrent_dynamic",
        doc,
        When.DYNAMIC,
        parameters=(2,),
        others=(1,),
        required=(2,),
        weight=2,
        zero_at=6,
        overload="input",
    )
    for name, doc in _NAMES.items()
)
