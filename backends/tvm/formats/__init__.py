"""Storage formats of linear layers' weights, one file per format. New modules here are loaded
automatically.

    support         asks which formats accept a weight as it is   accepting, refusals
    fuse            chooses the format of a weight                choose
    ops/fused       packs it, when built or when loaded           variant, pack, columns
    kernels/linear  declares operands and emits products          operands, uses_tiles,
                                                                  emit_block, emit_scaled
    tuning          fills operands with random numbers            operands
"""

import importlib
import pkgutil

from tersor.backends.tvm.formats.format import (
    FLOAT,
    FORMATS,
    QUANTIZED,
    Block,
    Format,
    Operand,
    accepting,
    choose,
    refusals,
    register,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FLOAT", "FORMATS", "QUANTIZED", "Block", "Format", "Operand", "accepting", "choose",
    "refusals", "register",
]  # fmt: skip
