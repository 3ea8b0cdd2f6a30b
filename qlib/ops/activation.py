"""Functions of one tensor, element by element: tables with one entry for each stored integer."""

from __future__ import annotations

from qlib.ops.op import Family, Op


def _table(
    name: str, family: Family, doc: str, interval: tuple[float, float] | None = None, keywords: tuple[str, ...] = ()
) -> Op:
    return Op(f"quantized::{name}", family, (f"aten::{name}",), "table", doc, interval=interval, keywords=keywords)


OPS = (
    _table("relu", Family.SHARED, "max(x, 0)"),
    _table("relu6", Family.SHARED, "min(max(x, 0), 6)"),
    _table("hardtanh", Family.ARITHMETIC, "x clamped to an interval"),
    _table("clamp", Family.ARITHMETIC, "x clamped to an interval, either bound optional"),
    _table("hardswish", Family.OBSERVED, "x * relu6(x + 3) / 6"),
    _table("elu", Family.OBSERVED, "x for x > 0, else alpha * (exp(x) - 1)"),
    _table("leaky_relu", Family.OBSERVED, "x for x > 0, else slope * x"),
    _table("silu", Family.OBSERVED, "x * sigmoid(x)"),
    _table("gelu", Family.OBSERVED, "x times the normal distribution function of x", keywords=("approximate",)),
    _table("celu", Family.OBSERVED, "x for x > 0, else alpha * (exp(x / alpha) - 1)"),
    _table("selu", Family.OBSERVED, "elu with the constants of self-normalizing networks"),
    _table("softplus", Family.OBSERVED, "log(1 + exp(beta * x)) / beta"),
    _table("mish", Family.OBSERVED, "x * tanh(softplus(x))"),
    Op(
        "quantized::prelu",
        Family.OBSERVED,
        ("aten::prelu",),
        "parametric_table",
        "x for x > 0, else a learned slope times x, one for all channels or one for each",
        parameters=(1,),
        required=(1,),
    ),
    _table("threshold", Family.ARITHMETIC, "x above a bound, elsewhere a number"),
    _table("abs", Family.ARITHMETIC, "absolute value"),
    _table("neg", Family.ARITHMETIC, "x with the other sign"),
    _table("exp", Family.ARITHMETIC, "e to the power of x"),
    _table("expm1", Family.ARITHMETIC, "e to the power of x, less one"),
    _table("log", Family.ARITHMETIC, "natural logarithm"),
    _table("log1p", Family.ARITHMETIC, "natural logarithm of x plus one"),
    _table("sqrt", Family.ARITHMETIC, "square root"),
    _table("rsqrt", Family.ARITHMETIC, "one over the square root"),
    _table("reciprocal", Family.ARITHMETIC, "one over x"),
    _table("square", Family.ARITHMETIC, "x times x"),
    Op("quantized::pow", Family.ARITHMETIC, ("aten::pow",), "table", "x to a constant power", overload="Tensor_Scalar"),
    _table("erf", Family.ARITHMETIC, "the error function"),
    _table("sin", Family.ARITHMETIC, "sine"),
    _table("cos", Family.ARITHMETIC, "cosine"),
    _table("log_sigmoid", Family.ARITHMETIC, "logarithm of the sigmoid"),
    _table("hardshrink", Family.ARITHMETIC, "x, but zero near zero"),
    _table("softshrink", Family.ARITHMETIC, "x moved towards zero by a bound"),
    _table("clamp_min", Family.ARITHMETIC, "x, but not below a bound"),
    _table("clamp_max", Family.ARITHMETIC, "x, but not above a bound"),
    _table("hardsigmoid", Family.FIXED, "relu6(x + 3) / 6, results in [0, 1]", (0.0, 1.0)),
    _table("sigmoid", Family.FIXED, "1 / (1 + exp(-x)), results in [0, 1]", (0.0, 1.0)),
    _table("tanh", Family.FIXED, "hyperbolic tangent, results in [-1, 1]", (-1.0, 1.0)),
)
