"""TVM: lowers the IR to Relax with kernels of our own, compiles and runs it.

What it builds is machine code, which :func:`open_session` runs; :func:`examine`, :func:`interface` and
:func:`beside` only read what it tells of itself.
"""

from tersor.backends.tvm.build import build
from tersor.backends.tvm.check import check
from tersor.backends.tvm.choices import axes
from tersor.backends.tvm.options import Choice
from tersor.backends.tvm.session import beside, examine, interface, open_session, run
from tersor.backends.tvm.tuning import tune

SUFFIX = ".so"
KINDS = ("cpu", "cuda")  # of targets
ROW_SCALES = True  # Whether there are integer kernels for activations with one scale a row.
MERGES = True  # Whether it merges linear layers that read the same by itself.
TUNES = True  # Whether it has kernels to measure.

__all__ = [
    "KINDS", "MERGES", "ROW_SCALES", "SUFFIX", "TUNES", "Choice", "axes", "beside", "build", "check",
    "examine", "interface", "open_session", "run", "tune",
]  # fmt: skip
