"""TVM: lowers the IR to Relax with kernels of our own, compiles and runs it.

What it builds is machine code, which :func:`open_session` runs; :func:`examine`, :func:`interface` and
:func:`companions` only read its description.
"""

import os
from types import MappingProxyType

# TVM's own threads, which only run during compilation, spin in sched_yield: on busy cores a process would
# exit minutes after its last line.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")

from tersor.backends.tvm.build import build
from tersor.backends.tvm.check import check
from tersor.backends.tvm.choices import axes
from tersor.backends.tvm.options import Choice
from tersor.backends.tvm.session import companions, examine, interface, open_session
from tersor.backends.tvm.support import supports
from tersor.backends.tvm.tuning import tune
from tersor.numerics.sums import EIGHTS, FOURS

SUFFIX = ".so"
KINDS = ("cpu", "cuda")
VARIANTS = MappingProxyType[str, str]({})  # Fusion merges linear layers that read the same value.
FASTER_SUMS = (FOURS, EIGHTS)

__all__ = [
    "FASTER_SUMS", "KINDS", "SUFFIX", "VARIANTS", "Choice", "axes", "build", "check", "companions",
    "examine", "interface", "open_session", "supports", "tune",
]  # fmt: skip
