"""A deterministic order of stores in shape functions.

Relax keeps the sizes that a function computes in one array, which generated functions fill.  The order of
their stores depends on addresses of TVM's objects: the same graph would give other bytes.
"""

from __future__ import annotations

import tvm
from tvm import tirx


@tvm.transform.module_pass(opt_level=0)
def order_shape_stores(module: tvm.IRModule, context: object) -> tvm.IRModule:
    """After VMShapeLower: sorts the stores of its functions by index."""
    ordered = {
        name: func.with_body(_ordered(func.body))
        for name, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc) and name.name_hint.startswith("shape_func")
    }
    module = module.clone()
    module.update(tvm.IRModule(ordered))
    return module


def _ordered(body: tirx.Stmt) -> tirx.Stmt:
    """Stores read input sizes and never each other's results, so any order is valid."""
    if not isinstance(body, tirx.SeqStmt):
        return body
    assert all(isinstance(stmt, tirx.BufferStore) for stmt in body)
    return tirx.SeqStmt(sorted(body, key=lambda stmt: int(stmt.indices[0])))
