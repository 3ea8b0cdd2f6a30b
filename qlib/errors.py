"""Every error that this library raises on purpose.

QlibError
├── CaptureError       a module can't be turned into a graph, or a graph is called with inputs it was not captured for
├── QConfigError       a QConfig asks for something that does not exist or contradicts itself
│   └── QuantizerError what a quantizer wrote into a graph contradicts itself, or nothing here can do it
├── CalibrationError   an observer has seen nothing, or nothing usable
└── ConversionError    a graph can't be converted or lowered
"""

from __future__ import annotations


class QlibError(Exception):
    """Root of the errors raised on purpose."""


class CaptureError(QlibError):
    """A module can't be captured, or a graph is called with inputs it was not captured for."""


class QConfigError(QlibError):
    """A QConfig asks for something that does not exist or contradicts itself."""


class QuantizerError(QConfigError):
    """What a quantizer wrote into a graph contradicts itself, or nothing here can do it."""


class CalibrationError(QlibError):
    """An observer has seen nothing, or nothing usable."""


class ConversionError(QlibError):
    """A graph can't be converted or lowered."""
