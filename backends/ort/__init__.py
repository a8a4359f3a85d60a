"""ONNX Runtime: lowers the IR to an ONNX model, opens and runs it.

What every backend offers: ``build``, ``open_session``, ``run``, ``Evaluator``, ``axes``, ``Choice``,
``supports``, ``SUFFIX``, ``KINDS``, ``check``.
"""

from tersor.backends.ort.check import check
from tersor.backends.ort.choices import axes
from tersor.backends.ort.lower import lower, supports
from tersor.backends.ort.options import Choice, LowerOptions, SessionOptions
from tersor.backends.ort.session import Evaluator, build, open_session, run

SUFFIX = ".onnx"
KINDS = ("cpu",)  # of targets

__all__ = [
    "KINDS", "SUFFIX", "Choice", "Evaluator", "LowerOptions", "SessionOptions", "axes", "build",
    "check", "lower", "open_session", "run", "supports",
]  # fmt: skip
