"""The default CPU schedule of functions other than our kernels.

Relax emits scalar loops in source order.  Here they are reordered and annotated;
:mod:`tersor.backends.tvm.loops` lowers the annotations.

1. Cheap elementwise blocks are inlined into their consumers.
2. A function whose blocks run over the same rows, such as a normalization, is computed row by row, so
   that rows stay in cache.
3. The innermost contiguous loop of an elementwise block is vectorized; outer loops run in parallel.
4. A reduction over a contiguous axis accumulates in vectors; one over another axis, a matrix product or a
   convolution keeps a tile of results in registers.

Other blocks keep their loops; :func:`fallbacks` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, sym, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import Schedule
from tvm.tirx import IterVar

from tersor.backends.tvm.kernels.emit import KERNEL
from tersor.backends.tvm.loops import REDUCE, TILE, VECTOR
from tersor.backends.tvm.statements import mentions
from tersor.errors import one_line

STAYS = "tersor.stays"  # Marks a block that must not be inlined.
_LINE = 16  # Elements of a cache line, of four bytes each.
_ROWS = 4  # Of a tile: with two vectors of columns, eight accumulators and their operands fit registers.
_EXPENSIVE = frozenset(
    f"tirx.{name}" for name in ("exp", "log", "log1p", "pow", "erf", "tanh", "sigmoid", "rsqrt", "sin", "cos")
)  # fmt: skip
_fallbacks: list[str] = []


def fallbacks() -> list[str]:
    """Functions and blocks that were left unscheduled in this process, each with the reason."""
    return list(_fallbacks)


def default_schedule(bits: int) -> tvm.transform.Pass:
    """The scheduling pass, for vectors of ``bits`` bits."""

    @tvm.transform.module_pass(opt_level=0)
    def apply(module: tvm.IRModule, context: object) -> tvm.IRModule:
        scheduled = {
            name: _scheduled(name.name_hint, func, bits)
            for name, func in module.functions_items()
            if isinstance(func, tirx.PrimFunc) and not (func.attrs and KERNEL in func.attrs)
        }
        module = module.clone()
        module.update(tvm.IRModule(scheduled))
        return module

    return apply


def _scheduled(name: str, func: tirx.PrimFunc, bits: int) -> tirx.PrimFunc:
    if func.attrs and "tirx.is_scheduled" in func.attrs:
        return func
    try:
        schedule = Schedule(func, error_render_level="fast")
        root = schedule.get_sblock("root")
        blocks = schedule.get_child_blocks(root)
    except Exception as error:
        return _unscheduled(name, func, error)
    _inline(schedule, root)
    blocks = schedule.get_child_blocks(root)
    marked = schedule.copy()
    if len(blocks) > 1:
        try:
            _by_rows(marked, marked.get_child_blocks(marked.get_sblock("root")), bits)
            return _function(marked)
        except _NotByRows:
            pass
        except Exception as error:
            _unscheduled(name, func, error)
    for block in blocks:
        trial = schedule.copy()
        try:
            _schedule_block(trial, trial.get_sblock(schedule.get(block).name_hint), bits)
        except Exception as error:
            _unscheduled(f"{name}: {schedule.get(block).name_hint}", func, error)
        else:
            schedule = trial
    return _function(schedule)


def _function(schedule: Schedule) -> tirx.PrimFunc:
    return schedule.mod["main"].with_attr("tirx.is_scheduled", True)


def _unscheduled(what: str, func: tirx.PrimFunc, error: Exception) -> tirx.PrimFunc:
    _fallbacks.append(f"{what}: {one_line(error, 200)}")
    return func


class _NotByRows(Exception):
    """The blocks do not run over the same rows."""


# -- blocks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """A loop and its block variable."""

    var: tirx.Var
    loop: Any
    extent: Any
    reduces: bool

    @property
    def is_unit(self) -> bool:
        return _is_one(self.extent)


def _is_one(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm) and extent.value == 1


def _axes(schedule: Schedule, block: Any) -> list[_Axis]:
    """The axes of a block, each a loop of its own.

    Raises:
        ValueError: its loops are not one per axis.
    """
    loops = schedule.get_loops(block)
    kinds = (IterVar.DataPar, IterVar.CommReduce)
    iters = schedule.get(block).iter_vars
    if any(i.iter_type not in kinds for i in iters):
        raise ValueError("an axis is neither spatial nor reduced")
    if len(loops) != len(iters):
        raise ValueError("its loops are not one per axis")
    return [
        _Axis(i.var, loop, schedule.get(loop).extent, i.iter_type == IterVar.CommReduce)
        for i, loop in zip(iters, loops, strict=True)
    ]


def _is_elementwise(schedule: Schedule, block: Any) -> bool:
    body = schedule.get(block)
    return body.init is None and all(i.iter_type == IterVar.DataPar for i in body.iter_vars)


def _inline(schedule: Schedule, root: Any) -> None:
    """Inlines elementwise blocks, unless much work would be repeated."""
    for block in schedule.get_child_blocks(root):
        marked = STAYS in schedule.get(block).annotations
        if (
            marked
            or not _is_elementwise(schedule, block)
            or not _is_cheap_to_inline(schedule, block)
        ):
            continue
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue  # The block writes an output, or cannot be inlined.


def _is_cheap_to_inline(schedule: Schedule, block: Any) -> bool:
    rank = len(schedule.get(block).iter_vars)
    consumers = schedule.get_consumers(block)
    once = all(len(schedule.get(c).iter_vars) == rank for c in consumers)
    if any(not _is_elementwise(schedule, c) for c in consumers) and not once:
        return False
    return (once and len(consumers) == 1) or not _is_expensive(schedule.get(block).body)


def _is_expensive(body: Any) -> bool:
    call = tvm_ffi.structural_walk(
        body,
        (
            tvm.ir.Call,
            lambda call: (
                tvm_ffi.VisitInterrupt(True) if getattr(call.op, "name", "") in _EXPENSIVE else None
            ),
        ),
    )
    return call is not None


def _lanes(schedule: Schedule, block: Any, bits: int) -> int:
    """The lanes of a vector of the widest elements that a block reads or writes."""
    body = schedule.get(block)
    widths = [r.source.dtype for r in (*body.reads, *body.writes)]
    return bits // max(32, *(tvm_ffi.dtype(str(d)).bits for d in widths))


# -- by rows ---------------------------------------------------------------------------------------


def _by_rows(schedule: Schedule, blocks: Sequence[Any], bits: int) -> None:
    """Schedules blocks that share their leading axes under one loop over these.

    Raises:
        _NotByRows: they share none, or a block is a product, whose tiles a loop over rows would split.
    """
    axes = [_axes(schedule, block) for block in blocks]
    shared = min(_leading(a) for a in axes)
    analyzer = sym.Analyzer()
    for at in range(shared):
        if not all(analyzer.can_prove_equal(axes[-1][at].extent, a[at].extent) for a in axes):
            shared = at
            break
    if shared == 0 or any(_leading(a) < sum(not x.reduces for x in a) for a in axes):
        raise _NotByRows
    reductions = [(b, own) for b, own in zip(blocks, axes, strict=True) if own[-1].reduces]
    if not reductions or not all(_reduces_rows(schedule, b, own, shared) for b, own in reductions):
        raise _NotByRows
    row = schedule.fuse(*(a.loop for a in axes[-1][:shared]))
    for block in reversed(blocks[:-1]):
        schedule.compute_at(block, row, preserve_unit_loops=True)
    for block, own in zip(blocks, axes, strict=True):
        rest = len(own) - shared
        inner = schedule.get_loops(block)[-rest:] if rest else []
        if not inner:
            continue
        lanes = _lanes(schedule, block, bits)
        if own[-1].reduces:
            schedule.annotate(inner[-1], REDUCE, lanes)
        else:
            schedule.annotate(inner[-1], VECTOR, lanes)
    schedule.parallel(row)


def _reduces_rows(schedule: Schedule, block: Any, axes: Sequence[_Axis], shared: int) -> bool:
    """Whether a block reduces the rest of a row, which is contiguous."""
    if not isinstance(schedule.get(block).body, tirx.BufferStore):
        return False
    return all(a.reduces for a in axes[shared:]) and _is_contiguous_reduction(
        schedule, block, axes[shared - 1], axes[-1]
    )


def _leading(axes: Sequence[_Axis]) -> int:
    return next((i for i, a in enumerate(axes) if a.reduces), len(axes))


# -- single blocks ---------------------------------------------------------------------------------


def _schedule_block(schedule: Schedule, block: Any, bits: int) -> None:
    axes = _axes(schedule, block)
    lanes = _lanes(schedule, block, bits)
    if not axes:
        return
    if not any(a.reduces for a in axes):
        _elementwise(schedule, block, axes, lanes)
        return
    spatial = [a for a in axes if not a.reduces]
    reduced = [a for a in axes if a.reduces]
    if not isinstance(schedule.get(block).body, tirx.BufferStore):
        # For example an argmax: two results are reduced together.
        _rows(schedule, spatial, reduced)
    elif spatial and not _is_contiguous_reduction(schedule, block, _column(spatial), reduced[-1]):
        _tiled(schedule, block, spatial, reduced, lanes)
    else:
        _reduction(schedule, spatial, reduced, lanes)


def _elementwise(schedule: Schedule, block: Any, axes: Sequence[_Axis], lanes: int) -> None:
    """Vectorizes the axes that are contiguous in every operand; the others run in parallel."""
    across = _transposed(schedule, block, axes)
    if across is not None:
        _by_lines(schedule, axes, across, lanes)
        return
    flat = _flat_suffix(schedule, block, axes)
    outer = [a.loop for a in axes[: len(axes) - flat]]
    inner = schedule.fuse(*(a.loop for a in axes[len(axes) - flat :]))
    schedule.annotate(inner, VECTOR, lanes)
    schedule.parallel(schedule.fuse(*outer) if outer else inner)


def _transposed(schedule: Schedule, block: Any, axes: Sequence[_Axis]) -> _Axis | None:
    """The axis along which an operand is contiguous where that is not the result's last one."""
    last = axes[-1]
    for indices, shape in _accesses(schedule, block)[1:]:
        index = _innermost(indices, shape)
        axis = next(
            (a for a in axes[:-1] if isinstance(index, tirx.Var) and index.same_as(a.var)), None
        )
        if axis is not None and any(mentions(i, last.var) for i in indices):
            return axis
    return None


def _by_lines(schedule: Schedule, axes: Sequence[_Axis], across: _Axis, lanes: int) -> None:
    """Computes several rows of the result together, so that a cache line of the operand is read once.

    For y[i, j] = x[j, i] and lines of 16 elements, y[0, :16], y[1, :16] … y[15, :16] read the same 16 lines.
    """
    last = axes[-1].loop
    others = [a.loop for a in axes[:-1] if a is not across]
    lines, within = schedule.split(across.loop, [None, _LINE])
    schedule.reorder(*others, lines, last, within)
    schedule.annotate(last, VECTOR, lanes)
    schedule.parallel(schedule.fuse(*others, lines))


def _flat_suffix(schedule: Schedule, block: Any, axes: Sequence[_Axis]) -> int:
    """How many trailing axes form one contiguous range in every operand that uses them."""
    accesses = _accesses(schedule, block)
    numbers = _without_loads(schedule.get(block).body.value)
    flat = 1
    while flat < len(axes):
        suffix = [a.var for a in axes[len(axes) - flat - 1 :]]
        if not all(_is_flat(indices, shape, suffix, axes) for indices, shape in accesses):
            break
        if any(mentions(numbers, v) for v in suffix):
            break  # Of a fused loop they would be quotients and remainders, which have no vectors.
        flat += 1
    return flat


def _without_loads(value: Any) -> Any:
    """An expression whose loads are any numbers: what it computes from indices remains."""
    return tvm_ffi.structural_map(
        value, (TensorLoad, lambda load: tirx.const(0, str(load.source.dtype)))
    )


def _is_flat(indices: Any, shape: Any, suffix: Sequence[tirx.Var], axes: Sequence[_Axis]) -> bool:
    if not any(mentions(i, v) for i in indices for v in suffix):
        return True
    if len(indices) < len(suffix):
        return False
    extents = [a.extent for a in axes[len(axes) - len(suffix) :]]
    tail, dims = indices[len(indices) - len(suffix) :], shape[len(shape) - len(suffix) :]
    whole = all(isinstance(i, tirx.Var) and i.same_as(v) for i, v in zip(tail, suffix, strict=True))
    analyzer = sym.Analyzer()
    # The outermost axis of a range may cover part of the operand's axis.
    full = all(analyzer.can_prove_equal(e, d) for e, d in list(zip(extents, dims, strict=True))[1:])
    rest = indices[: len(indices) - len(suffix)]
    return whole and full and not any(mentions(i, v) for i in rest for v in suffix)


def _reduction(
    schedule: Schedule, spatial: Sequence[_Axis], reduced: Sequence[_Axis], lanes: int
) -> None:
    """Computes results in turn, each from vectors of accumulators."""
    schedule.annotate(reduced[-1].loop, REDUCE, lanes)
    _rows(schedule, spatial, reduced)


def _rows(schedule: Schedule, spatial: Sequence[_Axis], reduced: Sequence[_Axis]) -> None:
    schedule.reorder(*(a.loop for a in (*spatial, *reduced)))
    if spatial:
        schedule.parallel(schedule.fuse(*(a.loop for a in spatial)))


def _tiled(
    schedule: Schedule, block: Any, spatial: Sequence[_Axis], reduced: Sequence[_Axis], lanes: int
) -> None:
    """Computes tiles of results: columns along the last axis, rows along axes that share the columns'
    reads."""
    *others, column = spatial
    sharing = [a for a in others if _shares(schedule, block, column, a) and not a.is_unit]
    rows = _trailing(others, sharing)
    outer = [a for a in others if a not in rows]
    schedule.reorder(*(a.loop for a in (*outer, *rows, column, *reduced)))
    tile = schedule.fuse(*(a.loop for a in rows)) if rows else column.loop
    schedule.annotate(tile, TILE, [_ROWS if rows else 1, lanes])
    # The first loop of a range runs as the loop does, so tiles of rows can be parallel.
    spread = not all(a.is_unit for a in outer)
    schedule.parallel(schedule.fuse(*(a.loop for a in outer)) if spread else tile)


def _trailing(others: Sequence[_Axis], sharing: Sequence[_Axis]) -> list[_Axis]:
    """The last run of adjacent axes that can be rows."""
    rows: list[_Axis] = []
    for axis in reversed(others):
        if axis in sharing:
            rows.insert(0, axis)
        elif rows:
            break
    return rows


def _shares(schedule: Schedule, block: Any, column: _Axis, row: _Axis) -> bool:
    """Whether some operand that varies along ``column`` is the same for all of ``row``."""
    reads = [indices for indices, _ in _accesses(schedule, block)[1:]]
    return any(
        any(mentions(i, column.var) for i in indices)
        and not any(mentions(i, row.var) for i in indices)
        for indices in reads
    )


def _column(spatial: Sequence[_Axis]) -> _Axis:
    """The last axis that is longer than 1: a matrix of one column is a vector of its rows."""
    return next((a for a in reversed(spatial) if not a.is_unit), spatial[-1])


def _is_contiguous_reduction(schedule: Schedule, block: Any, column: _Axis, axis: _Axis) -> bool:
    """Whether operands are contiguous along the reduced axis, and not along the column."""
    _, *reads = _accesses(schedule, block)
    last = [index for indices, shape in reads if (index := _innermost(indices, shape)) is not None]
    along_axis = [i for i in last if mentions(i, axis.var)]
    return bool(along_axis) and not any(mentions(i, column.var) for i in last)


def _innermost(indices: Any, shape: Any) -> Any:
    """The index of the last dim that is longer than 1, None where there is none."""
    longer = [i for i, n in zip(indices, shape, strict=True) if not _is_one(n)]
    return longer[-1] if longer else None


def _accesses(schedule: Schedule, block: Any) -> list[tuple[Any, Any]]:
    """Indices and shapes: of a block's write, then of its reads other than the accumulator's."""
    body = schedule.get(block).body
    if not isinstance(body, tirx.BufferStore):
        raise ValueError("its body is not a single store")
    loads: list[Any] = []
    tvm_ffi.structural_walk(body.value, (TensorLoad, loads.append))
    own = body.buffer
    reads = [x for x in loads if not x.source.same_as(own)]
    written = (body.indices, own.shape)
    return [written, *((x.indices, x.source.shape) for x in reads)]
