"""ONNX Runtime: lowers the IR to an ONNX model, opens and runs it. The reference runtime
(:class:`tersor.backend.Reference`)."""

from types import MappingProxyType

from tersor.backends.ort.check import check
from tersor.backends.ort.choices import axes
from tersor.backends.ort.lower import lower
from tersor.backends.ort.optimizers import OPTIMIZERS
from tersor.backends.ort.options import Choice, LowerOptions, SessionOptions
from tersor.backends.ort.session import (
    Evaluator,
    build,
    companions,
    examine,
    interface,
    open_session,
)
from tersor.backends.ort.support import supports
from tersor.frontends.onnx import read_built

SUFFIX = ".onnx"
KINDS = ("cpu",)
VARIANTS = MappingProxyType({"merged": "merge-linears"})
tune = None
FASTER_SUMS = ()

__all__ = [
    "FASTER_SUMS", "KINDS", "OPTIMIZERS", "SUFFIX", "VARIANTS", "Choice", "Evaluator", "LowerOptions",
    "SessionOptions", "axes", "build", "check", "companions", "examine", "interface", "lower",
    "open_session", "read_built", "supports", "tune",
]  # fmt: skip
