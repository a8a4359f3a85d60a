"""ONNX Runtime: lowers the IR to an ONNX model, opens and runs it.

What every backend offers: ``build``, ``open_session``, ``run``, ``interface``, ``beside``, ``axes``,
``Choice``, ``SUFFIX``, ``KINDS``, ``ROW_SCALES``, ``MERGES``, ``TUNES``, ``check``; and ``tune`` where
``TUNES`` says so.
The reference runtime, which runs models as they are given, also has ``read_built``, ``Evaluator``,
``OPTIMIZERS`` and ``supports``, and opens sessions at a ``level`` of its own optimizer.
"""

from tersor.backends.ort.check import check
from tersor.backends.ort.choices import axes
from tersor.backends.ort.lower import lower, supports
from tersor.backends.ort.optimizers import OPTIMIZERS
from tersor.backends.ort.options import Choice, LowerOptions, SessionOptions
from tersor.backends.ort.session import Evaluator, beside, build, interface, open_session, run
from tersor.frontends.onnx import read_built

SUFFIX = ".onnx"
KINDS = ("cpu",)  # of targets
ROW_SCALES = False  # Whether there are integer kernels for activations with one scale a row.
MERGES = False  # Whether it merges linear layers that read the same by itself.
TUNES = False  # Whether it has kernels to measure.

__all__ = [
    "KINDS", "MERGES", "OPTIMIZERS", "ROW_SCALES", "SUFFIX", "TUNES", "Choice", "Evaluator", "LowerOptions",
    "SessionOptions", "axes", "beside", "build", "check", "interface", "lower", "open_session", "read_built",
    "run", "supports",
]  # fmt: skip
