"""How a constant's numbers are stored: one form per file. Modules in this package register themselves.

``decode()`` always returns the dense numbers, so a graph keeps its reference meaning whatever encodings
its constants have, and any compression of a constant can be checked numerically.  Encodings nest: masked
affine, cast of masked.
"""

import importlib
import pkgutil

from tersor.ir.encodings.affine import Affine
from tersor.ir.encodings.cast import Cast
from tersor.ir.encodings.concat import concat
from tersor.ir.encodings.dense import Dense
from tersor.ir.encodings.encoding import FORMS, Encoding, Layer, register
from tersor.ir.encodings.masked import Masked
from tersor.ir.encodings.packed import Packed

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FORMS", "Affine", "Cast", "Dense", "Encoding", "Layer", "Masked", "Packed", "concat", "register",
]  # fmt: skip
