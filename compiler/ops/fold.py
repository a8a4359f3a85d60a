"""Values of nodes whose operands are constants, as the model would have computed them.

Exact in numpy (no rounding, or one that IEEE 754 settles; no corner that a runtime may see otherwise):
done at once.  All else is left to a runtime, many nodes in one graph: two implementations of an op differ
in more than rounding (a Clip whose bounds are NaN, a LogSoftmax of [200, -200], Resize's corners).
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
    """Results of a standard op whose operands are all constants; None where numpy is not sure to make
    what any runtime makes. They have the types that inference gave."""
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
    """Whether integers have a quotient: processors trap on those that have none."""
    signed = DType.of(a).numpy.kind == "i"
    return bool((b != 0).all() and not (signed and (a == np.iinfo(a.dtype).min).any()))


def _casts(array: np.ndarray, to: DType) -> bool:
    """Whether every number has one nearest in the other type, whoever casts."""
    source = DType.of(array)
    if source.is_integer or source is DType.BOOL:
        return to.is_integer or to is DType.BOOL or to in _ROUNDED_ONCE
    if source in (*_ROUNDED_ONCE, DType.F16, DType.BF16):
        if to.is_integer:
            limits = np.iinfo(to.numpy) if to.bits >= 8 else None
            whole = np.trunc(array.astype(np.float64))
            # The largest 64-bit integers round up to a number that is too large.
            inside = limits is not None and (whole > limits.min) & (whole < limits.max)
            return bool(np.all(inside))
        halved = to is DType.F16 and source in (DType.F32, DType.F16)
        return halved or to in _ROUNDED_ONCE or to is DType.BOOL
    return False


def _typed(values: Sequence[Value], arrays: Sequence[object]) -> list[np.ndarray] | None:
    """Results in the types that inference gave; None where one has another shape."""
    typed = []
    for value, array in zip(values, arrays, strict=False):
        result = np.asarray(array).astype(value.tensor.dtype.numpy, copy=False)
        if not value.tensor.accepts(TensorType(value.tensor.dtype, result.shape)):
            return None
        typed.append(result)
    return typed


class Waiting:
    """Nodes on constants, and on each other, that a runtime computes all in one."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._nodes: dict[Node, None] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def knows(self, value: Value | None) -> bool:
        """Whether a value will be known: a constant, or made by what waits."""
        return value is None or value.is_constant or value.producer in self._nodes

    def takes(self, node: Node) -> bool:
        """Whether a node may wait, whose operands are all known."""
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        if "." in node.op or not all(isinstance(v.type, TensorType) for v in values):
            return False
        types = {v.tensor.dtype for v in values}
        # Of what divides, numpy alone looks at the divisor; of some types no runtime gives arrays.
        whole = node.op in _DIVIDING and node.output.tensor.dtype.is_integer
        return not whole and all(t is DType.STRING or t.numpy.isbuiltin == 1 for t in types)

    def add(self, node: Node) -> None:
        self._nodes[node] = None

    def computed(self) -> Iterator[tuple[Node, dict[Value, np.ndarray]]]:
        """Nodes that could be computed, with those of their results that others read. What the runtime
        refuses is left out, and what follows from it."""
        known: dict[Value, np.ndarray] = {}
        done: list[Node] = []
        self._compute(list(self._nodes), known, done)
        for node in done:
            yield node, {v: known[v] for v in node.outputs if v in known}

    def _compute(
        self, nodes: Sequence[Node], known: dict[Value, np.ndarray], done: list[Node]
    ) -> None:
        """All of ``nodes`` in one run; where that fails, the first half, then what can still be computed
        of the second."""
        nodes = list(_with_operands(nodes, known))
        if not nodes:
            return
        among = set(nodes)
        wanted = [v for n in nodes for v in n.outputs if any(u.user not in among for u in v.uses)]
        if not wanted:
            return
        try:
            made = self._evaluate(_graph(nodes, wanted, known), {})
        except TersorError:
            made = None
        arrays = None if made is None else _typed(wanted, list(made.values()))
        if arrays is not None:
            known.update(zip(wanted, arrays, strict=True))
            done.extend(nodes)
        elif len(nodes) > 1:
            half = len(nodes) // 2
            self._compute(nodes[:half], known, done)
            self._compute(nodes[half:], known, done)


def _with_operands(nodes: Iterable[Node], known: Mapping[Value, np.ndarray]) -> Iterator[Node]:
    """Those of ``nodes``, in order, whose operands are there or made by one of them."""
    made: set[Value] = set()
    for node in nodes:
        if all(v is None or v.is_constant or v in known or v in made for v in node.inputs):
            made.update(node.outputs)
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
            held = known.get(value, value.encoding)
            assert held is not None
            here[value] = graph.constant(held, "x")
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
