"""Sizes of operands that broadcast.

    Add(x: f32[n, 3], y: f32[m, 3])    n and m are equal, or one of them is 1

Where dims do not tell so, a function of the host checks the sizes before the op runs; each set of dims once
in a function. Broadcasting is associative and idempotent: what ``n`` and ``m`` broadcast to, broadcasts with
``n`` to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tvm
from tvm import relax, tirx

from tersor.backends.tvm.lowering import Lowering
from tersor.ir import Dim

_ANY = -1  # The wanted size where the operands tell it.


def broadcast_sizes(
    lowering: Lowering, operands: Sequence[Sequence[Dim]], want: Sequence[Dim]
) -> list[Any]:
    """Expressions of the dims ``want``, to which operands of these dims broadcast.

    A dim that is only a name in the file is what the operands' sizes are broadcast to. The run fails where
    sizes do not broadcast, or give another size than is known of the result.
    """
    if not operands:
        return lowering.dims(want)
    return [
        _size(lowering, [own[axis] for own in operands if len(own) >= -axis], dim)
        for axis, dim in zip(range(-len(want), 0), want, strict=True)
    ]


def check_fits(lowering: Lowering, operands: Sequence[Sequence[Dim]], want: Sequence[Dim]) -> None:
    """Checks that operands broadcast to dims that are known and that they do not change."""
    broadcast_sizes(lowering, [*operands, want], want)


def check_equal(lowering: Lowering, pairs: Iterable[tuple[Dim, Dim]]) -> None:
    """Checks that the dims of each pair are equal."""
    for a, b in pairs:
        if a != b and frozenset({a, b}) not in lowering.equal:
            lowering.equal.add(frozenset({a, b}))
            _check(lowering, "tersor.check_equal", lowering.dims([a, b]))


def _check(lowering: Lowering, function: str, sizes: Sequence[Any]) -> None:
    """Emits a call of a function of the host, which takes sizes and the node's name."""
    shape, label = relax.ShapeExpr(sizes), tvm.ir.StringImm(lowering.label)
    type = relax.ShapeType(ndim=0)
    made = relax.op.call_pure_packed(function, shape, label, ty_args=[type])
    # Without the cast, nothing would need the call.
    lowering.builder.match_cast(lowering.emit(made), relax.ShapeType([]))


def _size(lowering: Lowering, dims: Sequence[Dim], want: Dim) -> Any:
    have = [dim for dim in dict.fromkeys(dims) if dim != 1]
    known, joins = lowering.is_known(want), lowering.joins
    parts = frozenset[Dim]().union(*(joins.get(dim, {dim}) for dim in have))
    settled = _is_settled(have, parts, want, joins.get(want, frozenset({want})))
    if not settled and (known or len(have) > 1):
        wanted = lowering.dim(want) if known else tirx.IntImm("int64", _ANY)
        _check(lowering, "tersor.check_broadcast", [wanted, *lowering.dims(have)])
    if want is not None:
        joins[want] = joins.get(want, frozenset()) | parts
    return lowering.dim(want) if known else _joined(lowering.dims(have))


def _is_settled(
    have: Sequence[Dim], parts: frozenset[Dim], want: Dim, joined: frozenset[Dim]
) -> bool:
    """Whether dims are known to broadcast to ``want``: the size that the dims ``joined`` broadcast to."""
    if len(have) < 2:
        return list(have) == ([] if want == 1 else [want])
    return parts <= joined if want in have else parts == joined


def _joined(sizes: Sequence[Any]) -> Any:
    """The size that sizes broadcast to: the one that is not 1, or 0 where one is 0."""
    size = sizes[0] if sizes else tirx.IntImm("int64", 1)
    for other in sizes[1:]:
        least, most = tirx.min(size, other), tirx.max(size, other)
        size = tirx.min(most, least * most)
    return size
