"""What an operator is: one row. Imports no torch, so that names can be checked without it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qlib.qparams import DType


class Family(StrEnum):
    """How an operator takes part in quantization.

    WEIGHTED    has a constant weight; starts a quantized region; results have their own range
    OBSERVED    no weight, otherwise as WEIGHTED
    ARITHMETIC  quantized only where all its inputs are; results have their own range
    SHARED      quantized only where its input is; results keep the input's parameters
    FIXED       quantized only where its input is; the range of its results is known beforehand
    """

    WEIGHTED = "weighted"
    OBSERVED = "observed"
    ARITHMETIC = "arithmetic"
    SHARED = "shared"
    FIXED = "fixed"


class When(StrEnum):
    """When the range of an operator's inputs is known.

    STATIC       beforehand: inputs are quantized, and so are results
    DYNAMIC      at run time, one range for the whole tensor; results are in float
    PER_TOKEN    at run time, one range for each row; results are in float
    WEIGHT_ONLY  never: inputs and results are in float, only the weight is stored in few bits
    """

    STATIC = "static"
    DYNAMIC = "dynamic"
    PER_TOKEN = "per_token"
    WEIGHT_ONLY = "weight_only"


INTEGERS = (DType.UINT8, DType.INT8, DType.INT16, DType.UINT4, DType.INT4)


@dataclass(frozen=True)
class Op:
    """One quantized operator; every step of the library reads what it needs from here.

    name        canonical name
    family      how annotation treats it
    chain       the float operators that it stands for, in the order in which one value flows through them
    kernel      the kernel that computes it, an entry of `qlib.kernels.KERNELS`
    doc         one line for people
    when        when the range of the inputs is known, which the QConfig decides
    operands    positions, in the first operator of the chain, of the float tensors (or lists of them) to quantize
    parameters  positions that may hold constant tensors (weights, statistics); all others hold plain numbers
    required    parameters that may not be None
    weight      position of the weight, or of the list of weights and biases, None where there is none
    bias        position of the bias, None where there is none
    weight_axis axis of the weight that counts the output channels
    groups      position of the number of groups, where `weight_axis` counts the channels of one group only: with more
                groups than one an index along it stands for several channels, and the weight has one scale for all
    weight_types  types of the stored weight that the row is for
    interval    the known range of the results of a FIXED operator
    zero_at     position of an argument that must be zero, None where there is none
    none_at     position of an argument that must be None, or a QConfig that asks for the row is refused; None for none
    finite_at   position of a number that may not be infinite, None where there is none
    overload    the only overload of the first float operator that the row stands for, "" for any
    others      positions that take any tensor (or list of them) as it is, but no number: indices, masks
    keywords    keyword-only arguments that the kernel heeds; an operator with any other one is left in float
    """

    name: str
    family: Family
    chain: tuple[str, ...]
    kernel: str
    doc: str
    when: When = When.STATIC
    operands: tuple[int, ...] = (0,)
    parameters: tuple[int, ...] = ()
    required: tuple[int, ...] = ()
    weight: int | None = None
    bias: int | None = None
    weight_axis: int = 0
    groups: int | None = None
    weight_types: tuple[DType, ...] = INTEGERS
    interval: tuple[float, float] | None = None
    zero_at: int | None = None
    none_at: int | None = None
    finite_at: int | None = None
    overload: str = ""
    others: tuple[int, ...] = ()
    keywords: tuple[str, ...] = ()

    @property
    def short_name(self) -> str:
        """The name without its namespace; the library operator is called the same."""
        return self.name.partition("::")[2]
