"""If, Loop and Scan. Their bodies are subgraphs that may read outer values; torch evaluation gets a callable
``run(body, *operands)`` for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tersor.ir import Dim, Graph, Node, TensorType, UnknownType, Value, ValueType
from tersor.ops.families._symbolic import refuse
from tersor.ops.families._ties import dims
from tersor.ops.opdef import Cost, OpDef

Run = Callable[..., list[Any]]


def _common(a: ValueType, b: ValueType) -> ValueType:
    """The most specific type that includes both."""
    if a == b:
        return a
    if not isinstance(a, TensorType) or not isinstance(b, TensorType) or a.dtype is not b.dtype:
        return UnknownType()
    if a.dims is None or b.dims is None or len(a.dims) != len(b.dims):
        return a.with_dims(None)
    return a.with_dims(tuple(x if x == y else None for x, y in zip(a.dims, b.dims, strict=True)))


def _stacked(type: ValueType, steps: Dim = None, axis: int = 0) -> ValueType:
    """The type of a body's output, stacked over all iterations."""
    if not isinstance(type, TensorType):
        return UnknownType()
    if type.dims is None:
        return type
    at = axis % (len(type.dims) + 1)
    return type.with_dims((*type.dims[:at], steps, *type.dims[at:]))


def _body(node: Node, name: str) -> Graph:
    body = node.attrs[name]
    assert isinstance(body, Graph)
    return body


def _carried(operands: Sequence[Value | None], returned: Sequence[ValueType]) -> list[ValueType]:
    """Types of loop-carried values, which include the initial value's and every iteration's."""
    pairs = zip(operands, returned, strict=False)
    return [_common(v.type, t) if v is not None else t for v, t in pairs]


def _unknown_cost(node: Node) -> Cost:
    """Which body runs, and how often, is known only at run time."""
    return Cost(None, None)


def _same_axes(*values: Value | None) -> list[tuple[tuple[Value, int], ...]]:
    """All axes of values that are the same; none if a rank is unknown."""
    present = [v for v in values if v is not None]
    ranks = {len(dims(v)) for v in present}
    count = ranks.pop() if len(ranks) == 1 else 0
    return [tuple((v, axis) for v in present) for axis in range(count)]


def _stacked_axes(row: Value, whole: Value | None, at: int) -> list[tuple[tuple[Value, int], ...]]:
    """Axes of ``row``, which is a slice of ``whole`` at its axis ``at``."""
    count = len(dims(row))
    if whole is None or len(dims(whole)) != count + 1:
        return []
    at %= count + 1
    return [((row, i), (whole, i + (i >= at))) for i in range(count)]


# -- If --------------------------------------------------------------------------------------------


def _if_infer(node: Node) -> list[ValueType]:
    branches = _body(node, "then_branch"), _body(node, "else_branch")
    counts = {len(b.outputs) for b in branches}
    if counts != {len(node.outputs)}:
        refuse(node, f"branches return {sorted(counts)} values for {len(node.outputs)} results")
    return [
        _common(a.type, b.type)
        for a, b in zip(branches[0].outputs, branches[1].outputs, strict=True)
    ]


def _if_bound(node: Node) -> list[tuple[tuple[Value, int], ...]]:
    branches = _body(node, "then_branch").outputs, _body(node, "else_branch").outputs
    return [
        axes for same in zip(node.outputs, *branches, strict=True) for axes in _same_axes(*same)
    ]


def _if(condition: Any, *, then_branch: Graph, else_branch: Graph, run: Run) -> tuple[Any, ...]:
    return tuple(run(then_branch if bool(condition.reshape(-1)[0]) else else_branch))


# -- Loop ------------------------------------------------------------------------------------------


def _loop_infer(node: Node) -> list[ValueType]:
    returned = [v.type for v in _body(node, "body").outputs[1:]]
    carried = max(len(node.inputs) - 2, 0)
    if len(returned) != len(node.outputs):
        refuse(node, f"the body returns {len(returned)} values for {len(node.outputs)} results")
    return [*_carried(node.inputs[2:], returned), *map(_stacked, returned[carried:])]


def _loop_bound(node: Node) -> list[tuple[tuple[Value, int], ...]]:
    body, carried = _body(node, "body"), max(len(node.inputs) - 2, 0)
    inner, returned = body.inputs[2:], body.outputs[1:]
    states = zip(node.inputs[2:], inner, returned, node.outputs, strict=False)
    rows = zip(returned[carried:], node.outputs[carried:], strict=True)
    return [
        *(axes for same in states for axes in _same_axes(*same)),
        *(axes for row, whole in rows for axes in _stacked_axes(row, whole, 0)),
    ]


def _loop(most: Any, condition: Any, *carried: Any, body: Graph, run: Run) -> tuple[Any, ...]:
    import torch

    states, rows, step = list(carried), [], 0
    going = condition is None or bool(condition.reshape(-1)[0])
    last = None if most is None else int(most.reshape(-1)[0])
    while going and (last is None or step < last):
        flag, *values = run(body, torch.tensor(step), torch.tensor(going), *states)
        states, row = values[: len(states)], values[len(states) :]
        rows.append(row)
        going, step = bool(flag.reshape(-1)[0]), step + 1
    return *states, *_scan_results(rows, body.outputs[1 + len(states) :], [])


def _scan_results(
    rows: list[list[Any]], results: Sequence[Value], axes: Sequence[int]
) -> list[Any]:
    """The scan outputs of all iterations, stacked along a new axis; empty without iterations."""
    import torch

    from tersor.ops.families._torch import torch_dtype

    if rows:
        columns = zip(*rows, strict=True)
        return [torch.stack(c, axes[i] if axes else 0) for i, c in enumerate(columns)]
    empty = []
    for i, value in enumerate(results):
        shape = [d if isinstance(d, int) else 0 for d in value.tensor.dims or ()]
        at = axes[i] % (len(shape) + 1) if axes else 0
        shape.insert(at, 0)
        empty.append(torch.empty(shape, dtype=torch_dtype(value.tensor.dtype)))
    return empty


# -- Scan ------------------------------------------------------------------------------------------


def _entries(node: Node, name: str, count: int) -> list[int]:
    """An attribute with an entry for each of ``count`` values, by default zeros."""
    return _filled(node.attrs.get(name), count)


def _filled(stated: Any, count: int) -> list[int]:
    return list(stated) if stated else [0] * count


def _scan_infer(node: Node) -> list[ValueType]:
    scans = node.attrs["num_scan_inputs"]
    assert isinstance(scans, int)
    carried, returned = len(node.inputs) - scans, [v.type for v in _body(node, "body").outputs]
    if carried < 0 or len(returned) != len(node.outputs):
        refuse(
            node, f"{len(node.inputs)} operands and {len(returned)} values of the body do not fit"
        )
    axes = _entries(node, "scan_input_axes", scans)
    steps = _steps(node.inputs[carried:], axes)
    at = _entries(node, "scan_output_axes", len(returned) - carried)
    rows = [_stacked(t, steps, a) for t, a in zip(returned[carried:], at, strict=True)]
    return [*_carried(node.inputs[:carried], returned), *rows]


def _scan_bound(node: Node) -> list[tuple[tuple[Value, int], ...]]:
    body, scans = _body(node, "body"), node.attrs["num_scan_inputs"]
    assert isinstance(scans, int)
    carried, returned = len(node.inputs) - scans, body.outputs
    states = zip(node.inputs[:carried], body.inputs, returned, node.outputs, strict=False)
    in_axes = _entries(node, "scan_input_axes", scans)
    out_axes = _entries(node, "scan_output_axes", len(returned) - carried)
    rows = [
        *zip(body.inputs[carried:], node.inputs[carried:], in_axes, strict=True),
        *zip(returned[carried:], node.outputs[carried:], out_axes, strict=True),
    ]
    return [
        *(axes for same in states for axes in _same_axes(*same)),
        *(axes for row, whole, at in rows for axes in _stacked_axes(row, whole, at)),
    ]


def _steps(operands: Sequence[Value | None], axes: Sequence[int]) -> Dim:
    """The length of the scanned axes: a number if one of them is."""
    lengths: list[Dim] = []
    for value, axis in zip(operands, axes, strict=True):
        have = value.tensor.dims if value is not None else None
        lengths.append(have[axis] if have else None)
    numbers = [d for d in lengths if isinstance(d, int)]
    return numbers[0] if numbers else next((d for d in lengths if d is not None), None)


def _scan(
    *operands: Any, body: Graph, num_scan_inputs: int, run: Run, scan_input_axes: Any = None,
    scan_input_directions: Any = None, scan_output_axes: Any = None, scan_output_directions: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    count = len(operands) - num_scan_inputs
    states, scanned = list(operands[:count]), operands[count:]
    axes = _filled(scan_input_axes, num_scan_inputs)
    backwards = _filled(scan_input_directions, num_scan_inputs)
    steps = scanned[0].shape[axes[0]]
    rows: list[list[Any]] = []
    for step in range(steps):
        slices = [
            x.select(axis, steps - 1 - step if back else step)
            for x, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        values = run(body, *states, *slices)
        states = values[:count]
        rows.append(values[count:])
    results = body.outputs[count:]
    at = _filled(scan_output_axes, len(results))
    flips = _filled(scan_output_directions, len(results))
    stacked = zip(_scan_results(rows, results, at), at, flips, strict=True)
    return *states, *(y.flip(axis) if flip else y for y, axis, flip in stacked)


ROWS = [
    OpDef("If", since=11, infer=_if_infer, torch=_if, cost=_unknown_cost, bound=_if_bound),
    OpDef(
        "Loop",
        traits=frozenset({"loop"}),
        since=11,
        infer=_loop_infer,
        torch=_loop,
        cost=_unknown_cost,
        bound=_loop_bound,
    ),
    OpDef(
        "Scan",
        traits=frozenset({"loop"}),
        since=11,
        infer=_scan_infer,
        torch=_scan,
        cost=_unknown_cost,
        bound=_scan_bound,
    ),
]
