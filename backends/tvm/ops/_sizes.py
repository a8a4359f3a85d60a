"""Sizes of a result that are computed at run time, before the op that makes it.

    %s: i64[1] = Sub(64, %length)      %y: f32[4, size_0] = Slice(%x, %s, ...)

A small function of the library computes the sizes that the file does not give, i64[1] here; ``size_0`` is
defined from then on, so the op itself is lowered like any op with named sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx

from tersor.backends.tvm.lowering import Lowering
from tersor.backends.tvm.ops._elements import listed
from tersor.ir import Node

Sizes = Callable[..., Sequence[Any]]
"""From operands of a TE function to the dims of the result."""


def compute_sizes(lowering: Lowering, node: Node, sizes: Sizes, *read: Any) -> None:
    """Defines the result's sizes that are not known yet as what ``sizes`` computes from ``read``: tensors and
    numbers, also in lists, as :meth:`Lowering.te` takes them."""
    dims = node.output.tensor.dims or ()
    unknown = [
        axis for axis, dim in enumerate(dims) if dim is not None and not lowering.is_known(dim)
    ]
    if not unknown:
        return

    def compute(*read: Any) -> Any:
        result = sizes(*read)
        chosen = [result[axis].astype("int64") for axis in unknown]
        count = tirx.IntImm("int64", len(chosen))
        return te.compute((count,), lambda i: listed(chosen, i), name="sizes")

    vector = lowering.te(compute, *read, primfunc_name_hint="sizes")
    type = relax.ShapeType(ndim=len(unknown))
    shape = lowering.emit(
        relax.op.call_pure_packed("vm.builtin.tensor_to_shape", vector, ty_args=[type])
    )
    for axis in unknown:
        lowering.define(dims[axis])
    defined = [lowering.dim(dims[axis]) for axis in unknown]
    lowering.builder.match_cast(shape, relax.ShapeType(defined))


def steps_between(first: Any, last: Any, step: Any) -> Any:
    """How many numbers there are from ``first`` on, ``step`` apart, before ``last``."""
    forwards = step > 0
    distance = tirx.Select(forwards, last - first, first - last)
    # Written so that no sum exceeds int64 where the file says "to the end" by the largest step or end.
    count = tirx.floordiv(distance - 1, tirx.Select(forwards, step, -step)) + 1
    return tirx.Select(distance > 0, count, tirx.IntImm("int64", 0))
