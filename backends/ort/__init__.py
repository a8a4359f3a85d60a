"""ONNX Runtime: lowers the IR to an ONNX model, opens and runs it.

What every backend offers: ``build``, ``read_built``, ``open_session``, ``interface``, ``run``,
``Evaluator``, ``axes``, ``Choice``, ``supports``, ``SUFFIX``, ``KINDS``, ``check``.
"""

from tersor.backends.ort.check import check
from tersor.backends.ort.choices import axes
from tersor.backends.ort.lower import lower, supports
from tersor.backends.ort.options import Choice, LowerOptions, SessionOptions
from tersor.backends.ort.session import Evaluator, build, interface, open_session, run
from tersor.frontends.onnx import read_built

SUFFIX = ".onnx"
KINDS = ("cpu",)  # of targets

__all__ = [
    "KINDS", "SUFFIX", "Choice", "Evaluator", "LowerOptions", "SessionOptions", "axes", "build",
    "check", "interface", "lower", "open_session", "read_built", "run", "supports",
]  # fmt: skip
