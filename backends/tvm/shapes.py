"""The order in which sizes are defined, stored and used.

Fusion orders the bindings of a block by the variables they read, and does not see the sizes in their types:

    %s = tensor_to_shape(%n)                       %y = f(%x), of size_0 elements
    [size_0] = match_cast(%s)             ->       %s = tensor_to_shape(%n)
    %y = f(%x), of size_0 elements                 [size_0] = match_cast(%s)

``define_sizes_first`` restores the order.  And Relax keeps the sizes that a function computes in one array,
which generated functions fill; the order of their stores depends on addresses of TVM's objects, so that the
same graph would give other bytes.  ``order_shape_stores`` sorts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import is_prim_expr


@tvm.transform.module_pass(opt_level=0)
def define_sizes_first(module: tvm.IRModule, context: object) -> tvm.IRModule:
    """After ToNonDataflow: bindings that use a size come after the one that defines it."""
    ordered = {
        name: _defined_first(func)
        for name, func in module.functions_items()
        if isinstance(func, relax.Function)
    }
    module = module.clone()
    module.update(tvm.IRModule(ordered))
    return module


def _defined_first(func: relax.Function) -> relax.Function:
    bindings = [b for block in func.body.blocks for b in block.bindings]
    defined = [_sizes_of(b.ty) if isinstance(b, relax.MatchCast) else set() for b in bindings]
    given = {size for parameter in func.params for size in _sizes_of(parameter.ty)}
    missing = set[Any]().union(*defined) - given  # Sizes whose definition is still to come.
    if not missing:
        return func
    result: list[Any] = []
    waiting: list[tuple[Any, set[Any]]] = []
    late: set[Any] = set()  # Variables whose bindings wait.
    for binding, new in zip(bindings, defined, strict=True):
        waiting.append((binding, new))
        late.add(binding.var)
        ready = True
        while ready:
            ready = False
            for item in list(waiting):
                one, own = item
                sizes, variables = _used(one)
                if (sizes - own) & missing or (variables - {one.var}) & late:
                    continue
                waiting.remove(item)
                late.discard(one.var)
                missing -= own
                result.append(one)
                ready = True
    assert not waiting, "a size is defined by what uses it"
    body = relax.SeqExpr([relax.BindingBlock(result)], func.body.body)
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)


def _used(binding: Any) -> tuple[set[Any], set[Any]]:
    """(sizes in the types and operands of a binding, variables that it reads)."""
    sizes, variables = _sizes_of(binding.var.ty), set[Any]()

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Call):
            sizes.update(size for type in expr.ty_args for size in _sizes_of(type))
        elif isinstance(expr, relax.ShapeExpr):
            sizes.update(_sizes_of(expr.ty))
        elif is_prim_expr(expr) and str(expr.ty.dtype) == "int64":
            sizes.update(_sizes_of(relax.ShapeExpr([expr]).ty))
        elif isinstance(expr, relax.Var):
            variables.add(expr)

    relax.analysis.post_order_visit(binding.value, visit)
    return sizes, variables


def _sizes_of(type: Any) -> set[Any]:
    found: Sequence[Any] = relax.analysis.tir_vars_in_type(type)
    return set(found)


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
