"""Constant folding: the results of nodes on constants, as the model would compute them.

Ops whose result is the same everywhere (no rounding, or correctly rounded by IEEE 754; no corner cases
that runtimes treat differently) are computed in numpy at once.  All others are left to a runtime, many
nodes in one graph: implementations differ in more than rounding (a Clip with NaN bounds, a LogSoftmax of
[200, -200], Resize's corners).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from tersor.errors import TersorError
from tersor.ir import DType, Graph, Node, TensorType, Value
from tersor.ops import onnx_schema
from tersor.ops.table import Table

Evaluate = Callable[[Graph, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

_MOVING = frozenset({
    "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
    "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
    "Where",
})  # fmt: skip
_LOGICAL = frozenset({
    "And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor",
})  # fmt: skip
_ARITHMETIC = frozenset({"Abs", "Add", "Mul", "Neg", "Sub"})
_OF_INTEGERS = frozenset(
    {"Max", "Min", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"}
)
_DIVIDING = frozenset({"Div", "Mod"})
_ROUNDED_ONCE = (
    DType.F32,
    DType.F64,
)  # Narrower floats are computed in wider ones by some runtimes.


def fold_exactly(node: Node) -> list[np.ndarray] | None:
    """The results of a standard op on constants, with the inferred types; None if numpy may differ from
    other runtimes."""
    if not _is_exact(node):
        return None
    results = onnx_schema.evaluate(node, [None if v is None else v.numpy() for v in node.inputs])
    return None if results is None else _typed(node.outputs, results)


def _is_exact(node: Node) -> bool:
    operands = [v.numpy() for v in node.inputs if v is not None]
    types = [DType.of(array) for array in operands]
    integers = all(type.is_integer or type is DType.BOOL for type in types)
    rounded = all(type in _ROUNDED_ONCE for type in types)
    if node.op in _MOVING or node.op in _LOGICAL:
        return True
    if node.op in _ARITHMETIC:
        return integers or rounded
    if node.op in _OF_INTEGERS:
        return integers and all(array.size for array in operands[:1])
    if node.op in _DIVIDING:
        return _divides(*operands) if integers else node.op == "Div" and rounded
    return node.op == "Cast" and _casts(operands[0], node.output.tensor.dtype)


def _divides(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether all integers have a quotient; processors trap on a division that has none."""
    signed = DType.of(a).numpy.kind == "i"
    return bool((b != 0).all() and not (signed and (a == np.iinfo(a.dtype).min).any()))


def _casts(array: np.ndarray, to: DType) -> bool:
    """Whether the result of the cast is the same on every runtime."""
    source = DType.of(array)
    if source.is_integer or source is DType.BOOL:
        return to.is_integer or to is DType.BOOL or to in _ROUNDED_ONCE
    if source in (*_ROUNDED_ONCE, DType.F16, DType.BF16):
        if to.is_integer:
            limits = np.iinfo(to.numpy) if to.bits >= 8 else None
            whole = np.trunc(array.astype(np.float64))
            # Strict: as floats, the largest 64-bit integers round up to a number out of range.
            inside = limits is not None and (whole > limits.min) & (whole < limits.max)
            return bool(np.all(inside))
        halved = to is DType.F16 and source in (DType.F32, DType.F16)
        return halved or to in _ROUNDED_ONCE or to is DType.BOOL
    return False


def _typed(values: Sequence[Value], arrays: Sequence[object]) -> list[np.ndarray] | None:
    """Results cast to the inferred types; None if a shape differs."""
    typed = []
    for value, array in zip(values, arrays, strict=False):
        result = np.asarray(array).astype(value.tensor.dtype.numpy, copy=False)
        if not value.tensor.accepts(TensorType(value.tensor.dtype, result.shape)):
            return None
        typed.append(result)
    return typed


class Deferred:
    """Nodes on constants, and on each other, to be computed by a runtime in one graph."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._nodes: dict[Node, None] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def knows(self, value: Value | None) -> bool:
        """Whether a value is a constant or computed by a deferred node."""
        return value is None or value.is_constant or value.producer in self._nodes

    def accepts(self, node: Node) -> bool:
        """Whether a node with known operands can be deferred."""
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        if "." in node.op or not all(isinstance(v.type, TensorType) for v in values):
            return False
        types = {v.tensor.dtype for v in values}
        # Integer division traps on a zero divisor, and some types cannot be returned by runtimes.
        whole = node.op in _DIVIDING and node.output.tensor.dtype.is_integer
        return not whole and all(t is DType.STRING or t.numpy.isbuiltin == 1 for t in types)

    def add(self, node: Node) -> None:
        self._nodes[node] = None

    def results(self) -> Iterator[tuple[Node, dict[Value, np.ndarray]]]:
        """The nodes that could be computed, with their results that other nodes read; without those that
        the runtime rejects, and nodes that depend on these."""
        known: dict[Value, np.ndarray] = {}
        done: list[Node] = []
        self._compute(list(self._nodes), known, done)
        for node in done:
            yield node, {v: known[v] for v in node.outputs if v in known}

    def _compute(
        self, nodes: Sequence[Node], known: dict[Value, np.ndarray], done: list[Node]
    ) -> None:
        """Computes ``nodes`` in one run; if that fails, the first half, then what is still possible of the
        second."""
        nodes = list(_computable(nodes, known))
        inside = set(nodes)
        wanted = [v for n in nodes for v in n.outputs if any(u.user not in inside for u in v.uses)]
        if not wanted:
            return
        try:
            results = self._evaluate(_graph(nodes, wanted, known), {})
            arrays = _typed(wanted, list(results.values()))
        except TersorError:
            arrays = None
        if arrays is not None:
            known.update(zip(wanted, arrays, strict=True))
            done.extend(nodes)
        elif len(nodes) > 1:
            half = len(nodes) // 2
            self._compute(nodes[:half], known, done)
            self._compute(nodes[half:], known, done)


def _computable(nodes: Iterable[Node], known: Mapping[Value, np.ndarray]) -> Iterator[Node]:
    """Those of ``nodes``, in order, whose operands are known or computed by one of them."""
    computed: set[Value] = set()
    for node in nodes:
        if all(v is None or v.is_constant or v in known or v in computed for v in node.inputs):
            computed.update(node.outputs)
            yield node


def _graph(
    nodes: Sequence[Node], wanted: Sequence[Value], known: Mapping[Value, np.ndarray]
) -> Graph:
    """A graph without inputs that computes ``wanted``, in their order."""
    table = nodes[0].graph.table if nodes[0].graph is not None else None
    assert isinstance(table, Table)
    graph = table.graph("constants")
    here: dict[Value, Value] = {}
    for node in nodes:
        for value in node.inputs:
            if value is None or value in here:
                continue
            data = known.get(value, value.encoding)
            assert data is not None
            here[value] = graph.constant(data, "x")
        copy = graph.emit_node(
            node.op,
            [None if v is None else here[v] for v in node.inputs],
            node.attrs,
            names=[""] * len(node.outputs),
            types=[v.type for v in node.outputs],
        )
        here.update(zip(node.outputs, copy.outputs, strict=True))
    graph.set_outputs([here[v] for v in wanted], [f"y{i}" for i in range(len(wanted))])
    return graph
