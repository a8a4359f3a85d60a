"""Small buffers go on the stack, where LLVM promotes those that fit registers.

TVM would allocate them on the heap, and drops such requests when it plans memory: this pass runs after
that.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from tersor.backends.tvm.kernels.emit import KERNEL

STACK_BYTES = 4096


@tirx.transform.prim_func_pass(opt_level=0)
def small_on_stack(func: tirx.PrimFunc, module: tvm.IRModule, context: object) -> tirx.PrimFunc:
    """Marks allocations of known, small size."""
    kernel = bool(func.attrs and KERNEL in func.attrs)

    def placed(allocation: Any) -> Any:
        buffer = allocation.buffer
        # Kernels choose their registers themselves.
        if kernel and buffer.scope() != "local":
            return allocation
        dtype = tvm_ffi.dtype(str(buffer.dtype))
        size = dtype.bits * dtype.lanes // 8
        for extent in buffer.shape:
            if not isinstance(extent, tirx.IntImm):
                return allocation
            size *= extent.value
        if size > STACK_BYTES:
            return allocation
        wish = {"disable_lower_builtin": tirx.const(True, "bool")}
        return tirx.AllocBuffer(buffer, {**allocation.annotations, **wish})

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, placed)))
