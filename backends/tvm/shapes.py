"""Functions that compute shapes, in one order.

Relax keeps the sizes that a function computes in one array, and has functions to fill it in.  In what
order these store depends on where TVM's objects lie in memory: the same graph would give other bytes.
"""

from __future__ import annotations

import tvm
from tvm import tirx


@tvm.transform.module_pass(opt_level=0)
def order_shape_stores(module: tvm.IRModule, context: object) -> tvm.IRModule:
    """After VMShapeLower: each of its functions stores by ascending place."""
    ordered = {
        name: func.with_body(_ordered(func.body))
        for name, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc) and name.name_hint.startswith("shape_func")
    }
    module = module.clone()
    module.update(tvm.IRModule(ordered))
    return module


def _ordered(body: tirx.Stmt) -> tirx.Stmt:
    """Stores read the sizes of the inputs and never each other's places, so any order is right."""
    if not isinstance(body, tirx.SeqStmt):
        return body
    assert all(isinstance(stmt, tirx.BufferStore) for stmt in body)
    return tirx.SeqStmt(sorted(body, key=lambda stmt: int(stmt.indices[0])))
