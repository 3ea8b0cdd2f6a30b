"""What one spec says, as frozen types; reading the file and placing its mistakes is `load`'s work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from conformance.errors import nearest
from conformance.expect import Accuracy, Expect, LayerBounds, ModeExpect, Output, narrow
from conformance.frozenmap import FrozenMap
from conformance.graphspec import GraphSpec
from conformance.qconfigspec import QConfigBody, QConfigModel, QSpecModel, StoredDtype
from conformance.source import Composite, Sequence
from conformance.tensorspec import (
    KEY,
    Distribution,
    Draw,
    Dtype,
    Integer,
    Number,
    Outliers,
    TensorQParams,
    TensorSpec,
    complete,
    misplaced,
)
from conformance.vocabulary import Capture, Mode

__all__ = [
    "DEFAULT_KEYS", "IDENTIFIER", "MAX_CASES", "Accuracy", "Calibration", "Capture", "Distribution", "Draw",
    "Dtype", "Expect", "GraphSpec", "LayerBounds", "Mode", "ModeExpect", "Outliers", "Output", "QConfigBody",
    "QConfigModel", "QSpecModel", "Spec", "StoredDtype", "TensorQParams", "TensorSpec", "flows", "json_schema",
    "narrow",
]  # fmt: skip

DEFAULT_KEYS = ("modes", "capture", "calibration", "qconfig", "inputs", "expect", "timeout")
# What a graph says by itself.
OF_MODULES = ("module", "inputs", "parameters", "calibration", "qconfig")
MAX_CASES = 4096
IDENTIFIER = r"^[a-z0-9_]+$"
_FROZEN = ConfigDict(frozen=True, extra="forbid")
_DRAW_KEYS = frozenset(Draw.model_fields)


class Calibration(BaseModel):
    """The data that ranges are taken from; a number alone is the short form of `batches`."""

    model_config = _FROZEN

    batches: Integer = Field(default=2, ge=1, le=256, description="How many batches are drawn.")
    inputs: Annotated[Mapping[str, TensorSpec], AfterValidator(FrozenMap)] = Field(
        default_factory=FrozenMap,
        description="What differs from `inputs`, by name; keys left out are those of `inputs`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, written: Any) -> Any:
        return {"batches": written} if isinstance(written, int) else written


def _once_each(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("expected each value once, found one twice: remove it")
    return values


_MODULE: dict[str, Any] = {
    "description": "The module: one layer, a list of layers, named layers with `forward`, or a factory of your own.",
    "anyOf": [{"$ref": "#/$defs/Layer"}, {"$ref": "#/$defs/Factory"}],
}


class Spec(BaseModel):
    """One spec with its matrix's values put in; `module` is a `conformance.source.ModuleSource`.

    One with a `graph` has neither module nor inputs until these are made of it.
    """

    model_config = _FROZEN

    id: Annotated[str, Field(pattern=IDENTIFIER, max_length=80, description="Name of the spec, unique in its file.")]
    why: str = Field(min_length=1, description="What would be broken if this failed, in a sentence.")
    module: Annotated[Any, WithJsonSchema({})]
    inputs: Annotated[Mapping[str, TensorSpec], AfterValidator(FrozenMap)] = Field(
        max_length=16,
        description="Argument of `forward` to tensor, in positional order.",
        json_schema_extra={"minProperties": 1},
    )
    graph: GraphSpec | None = Field(None, description="A quantized graph, for all of module, inputs and qconfig.")
    parameters: Annotated[Mapping[str, Draw], AfterValidator(FrozenMap)] = Field(
        default_factory=FrozenMap,
        description="Dotted path of a parameter or buffer, or a pattern such as '*.bias', to how it is drawn.",
    )
    calibration: Calibration = Field(default_factory=Calibration, description="Data that ranges are taken from.")
    modes: Annotated[tuple[Mode, ...], AfterValidator(_once_each)] = Field(
        (Mode.STATIC,), min_length=1, description="How the model is quantized."
    )
    capture: Annotated[tuple[Capture, ...], AfterValidator(_once_each)] = Field(
        (Capture.EXPORT, Capture.TRACE), min_length=1, description="How the module becomes a graph."
    )
    qconfig: QConfigModel | None = Field(None, description="How tensors are quantized; default the mode's own.")
    expect: Expect = Field(description="What must hold.")
    timeout: Number | None = Field(None, gt=0, le=3600, description="Seconds that one case may take.")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        return _with_calibration(written) if written.get("graph") is None else _of_graph(written)

    @model_validator(mode="after")
    def _inputs_fit(self) -> Spec:
        if self.graph is not None and self.modes != (Mode.NUMERICS,):
            raise misplaced("a graph is given to be run as it is: expected modes [numerics]", "modes")
        if self.graph is None and not self.inputs:
            raise misplaced("expected at least 1 in all, found 0", "inputs")
        if isinstance(self.module, Composite):
            _check_arguments(tuple(self.inputs), self.module)
        for path in self.qconfig.modules if self.qconfig is not None else ():
            _check_path(path, self.module)
        return self


def _of_graph(written: dict[str, Any]) -> dict[str, Any]:
    """The spec with what is made of its graph left empty."""
    for key in OF_MODULES:
        if key in written:
            raise misplaced(f"a spec has `graph` or `module` with its keys: remove {key!r}", key, KEY)
    return {"modes": [Mode.NUMERICS], "capture": [Capture.EXPORT], "module": None, "inputs": {}, **written}


def flows(spec: Spec) -> tuple[tuple[Mode, Capture], ...]:
    """Each mode and capture that a spec is a case in; where a graph is given the way of capture is no question."""
    captures = {mode: spec.capture[:1] if mode is Mode.NUMERICS else spec.capture for mode in spec.modes}
    return tuple((mode, capture) for mode in spec.modes for capture in captures[mode])


def _with_calibration(written: dict[str, Any]) -> dict[str, Any]:
    """Put what `calibration.inputs` leaves out in from `inputs`; malformed values are left to be refused."""
    calibration, inputs = written.get("calibration"), written.get("inputs")
    if not isinstance(calibration, dict) or not isinstance(inputs, dict):
        return written
    changed = calibration.get("inputs")
    if not isinstance(changed, dict):
        return written
    for name in changed:
        if name not in inputs:
            raise misplaced(f"no input {name!r}.{nearest(name, inputs)}", "calibration", "inputs", name, KEY)
    merged = {name: _override(inputs[name], change) for name, change in changed.items()}
    return {**written, "calibration": {**calibration, "inputs": merged}}


def _override(tensor: Any, change: Any) -> Any:
    """A change of the distribution leaves nothing of the old one."""
    if not isinstance(tensor, dict) or not isinstance(change, dict):
        return change
    shape = {key: value for key, value in complete(tensor).items() if key == "shape"}
    kept = {
        key: value for key, value in (shape | tensor).items() if "distribution" not in change or key not in _DRAW_KEYS
    }
    return {**kept, **change}


def _check_arguments(inputs: tuple[str, ...], module: Composite) -> None:
    arguments, required = module.function.arguments, module.function.required
    for name in inputs:
        if name not in arguments:
            takes = f" forward takes {', '.join(arguments) or 'nothing'}."
            raise misplaced(
                f"forward has no argument {name!r}.{nearest(name, arguments) or takes}", "inputs", name, KEY
            )
    if inputs != arguments[: len(inputs)]:
        raise misplaced(f"expected the inputs in the order of forward: {', '.join(arguments)}", "inputs")
    if missing := arguments[len(inputs) : required]:
        raise misplaced(f"forward also takes {', '.join(missing)}: add an input for each", "inputs")


def _check_path(path: str, module: Any) -> None:
    """Refuse a rule for a layer that the spec's module does not have; what a constructor builds is not looked into."""
    for part in path.split("."):
        if not isinstance(module, Composite | Sequence):
            return
        layers = module.layers if isinstance(module, Composite) else {str(n): m for n, m in enumerate(module.items)}
        if part not in layers:
            hint = nearest(part, layers) or f" Expected one of {', '.join(layers) or 'none'}."
            raise misplaced(f"the module has no layer {path!r}.{hint}", "qconfig", "modules", path, KEY)
        module = layers[part]


_TEXT_OR_LAYERS: dict[str, Any] = {
    "description": "A layer such as nn.Linear(30, 20), a list of layers, or named layers and the text of forward.",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Layer"}},
        {
            "type": "object",
            "properties": {
                "layers": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Layer"}},
                "forward": {"type": "string", "description": "def forward(self, x): ... and helper methods."},
            },
            "required": ["forward"],
            "additionalProperties": False,
        },
    ],
}
_FACTORY: dict[str, Any] = {
    "description": "A function of your own that returns the module; runs only with --allow-python.",
    "type": "object",
    "properties": {"python": {"type": "string", "pattern": r"^[\w.]+:\w+$"}},
    "required": ["python"],
    "additionalProperties": False,
}
_MATRIX: dict[str, Any] = {
    "description": "Names to lists of values: one case for each combination; ${name} stands for the value.",
    "type": "object",
    "properties": {
        "include": {"type": "array", "items": {"type": "object"}, "description": "Extends combinations or adds some."},
        "exclude": {"type": "array", "items": {"type": "object"}, "description": "Removes those that match all keys."},
    },
    "additionalProperties": {"type": "array", "minItems": 1},
}
_PLACEHOLDER: dict[str, Any] = {"type": "string", "pattern": r"\$\{[a-z0-9_]+\}", "description": "A matrix value."}
# Their text form is no short form but the only one, and names are fixed.
_NO_PLACEHOLDER = frozenset({"id", "matrix"})
_SHORT = {
    "Calibration": {"type": "integer", "minimum": 1},
    "QConfigModel": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/QConfigBody"}]},
}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a spec file as it is written, short forms and placeholders included."""
    case = Spec.model_json_schema()
    definitions: dict[str, Any] = case.pop("$defs")
    definitions |= {"Layer": _TEXT_OR_LAYERS, "Factory": _FACTORY}
    definitions["TensorSpec"]["required"] = []
    for name in _SHORT.keys() & definitions.keys():
        definitions[name] = {"anyOf": [definitions[name], _SHORT[name]]}
    properties = case["properties"]
    case["properties"] = {"id": properties["id"], "matrix": _MATRIX, **properties, "module": _MODULE}
    definitions["Case"] = case | {"required": ["id", "why", "expect"], "description": "One spec."}
    defaults = {key: _with_placeholder(key, case["properties"][key]) for key in DEFAULT_KEYS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Quantization conformance specs",
        "description": "What must hold for quantized PyTorch modules.",
        "type": "object",
        "properties": {
            "spec": {"const": 1, "description": "Version of this format."},
            "suite": {"type": "string", "pattern": IDENTIFIER, "description": "Name of this file's family of specs."},
            "defaults": {"type": "object", "properties": defaults, "additionalProperties": False},
            "cases": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Case"}},
        },
        "required": ["spec", "suite", "cases"],
        "additionalProperties": False,
        "$defs": {name: _open(definition) for name, definition in definitions.items()},
    }


def _with_placeholder(key: str, schema: dict[str, Any]) -> dict[str, Any]:
    opened = _open(schema)
    return opened if key in _NO_PLACEHOLDER else {"anyOf": [opened, _PLACEHOLDER]}


def _open(schema: Any) -> Any:
    """Allow a placeholder wherever a value may stand, and any key beside those that are known where it holds one."""
    if not isinstance(schema, dict):
        return schema
    opened = dict(schema)
    if "properties" in schema:
        opened["properties"] = {name: _with_placeholder(name, inner) for name, inner in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            opened[key] = _with_placeholder(key, schema[key])
    for key in ("anyOf", "oneOf", "prefixItems"):
        if key in schema:
            opened["anyOf" if key == "oneOf" else key] = [_open(inner) for inner in schema[key]]
    opened.pop("oneOf", None)
    return opened
