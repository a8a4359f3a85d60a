"""LSTM, GRU and RNN: one product of the operand for all steps, then a kernel that runs the steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from tersor.backends.tvm.kernels.activations import FUNCTIONS, Activation
from tersor.backends.tvm.kernels.recurrent import kernel
from tersor.backends.tvm.kernels.recurrent_spec import GATES, Cell, pack_recurrence, pack_units
from tersor.backends.tvm.lowering import Lowering, Refused, Rule, dtype_of
from tersor.backends.tvm.ops._elements import fitting
from tersor.backends.tvm.ops.broadcast import float_type
from tersor.ir import Affine, Node, Value

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_BOUNDED = 2  # Activations whose operands ``clip`` clips: runtimes do not clip LSTM's cell state.

Pack = Callable[[np.ndarray], np.ndarray]


def _recurrent(lowering: Lowering, node: Node) -> Sequence[Any]:
    x, w, r = node.inputs[:3]
    assert x is not None and w is not None and r is not None
    dtype = dtype_of(x.type)
    cell = _cell(node)
    arguments = [_read(lowering, cell, node)]
    for phase in range(len(cell.phases)):
        arguments.append(_packed(lowering, r, lambda a, i=phase: pack_recurrence(cell, a)[i]))  # type: ignore[misc]
    if cell.linear_before_reset:
        arguments.append(_hidden_bias(lowering, cell, node.input(3)))
    if cell.peepholes:
        arguments.append(_packed(lowering, node.input(7), lambda a: pack_units(cell, a)))
    if cell.lengths:
        arguments.append(lowering[node.input(4)])
    first, second, _ = lowering.shape_of(x)
    batch, steps = (first, [first, second]) if cell.batch_first else (second, [first])
    # Y's direction follows the step or, batch first, both; the states' precedes or follows the batch.
    inner = [cell.directions] if cell.batch_first else [cell.directions, batch]
    y = [*steps, *inner, cell.hidden]
    state = [batch, cell.directions] if cell.batch_first else [cell.directions, batch]
    state.append(cell.hidden)
    for index in range(5, 5 + cell.states):
        arguments.append(_initial(lowering, cell, node.input(index), state))
    # Layers with equal cells share a kernel.
    name = f"{node.op.lower()}_{hashlib.sha256(repr(cell).encode()).hexdigest()[:16]}"
    types = [relax.TensorType(dims, cell.dtype) for dims in (y, *[state] * cell.states)]
    called = lowering.kernel(name, lambda: kernel(cell, name))
    made = lowering.emit(relax.call_tir(called, arguments, types))
    results = [relax.TupleGetItem(made, i) for i in range(len(node.outputs))]
    if dtype != cell.dtype:
        results = [relax.op.astype(lowering.emit(result), dtype) for result in results]
    return [lowering.emit(result) for result in results]


def _cell(node: Node) -> Cell:
    attrs = node.attrs
    r = node.inputs[2]
    assert r is not None and r.tensor.dims is not None
    directions, _, hidden = r.tensor.dims
    if not isinstance(directions, int) or not isinstance(hidden, int):
        raise Refused(f"recurrent weights of type {r.type}, whose sizes are not all known")
    return Cell(
        node.op,
        float_type(r.tensor.dtype),
        hidden,
        _activations(node, directions),
        backward=attrs.get("direction") == "reverse",
        batch_first=bool(attrs.get("layout")),
        lengths=node.input(4) is not None,
        peepholes=node.op == "LSTM" and node.input(7) is not None,
        input_forget=bool(attrs.get("input_forget")),
        linear_before_reset=bool(attrs.get("linear_before_reset")),
    )


def _activations(node: Node, directions: int) -> tuple[tuple[Activation, ...], ...]:
    """Activations of each direction. Given parameters go, in order, to the activations that have one."""
    names: Any = node.attrs.get("activations") or _DEFAULTS[node.op] * directions
    stated: list[Any] = [node.attrs.get(f"activation_{name}") or () for name in ("alpha", "beta")]
    given = [iter(numbers) for numbers in stated]
    count = len(_DEFAULTS[node.op])
    activations = []
    for index, name in enumerate(names):
        if name.lower() not in FUNCTIONS:
            raise Refused(f"the activation {name}")
        _, *defaults = FUNCTIONS[name.lower()]
        alpha, beta = (
            0.0 if default is None else float(next(numbers, default))
            for numbers, default in zip(given, defaults, strict=True)
        )
        bound: Any = node.attrs.get("clip") if index % count < _BOUNDED else None
        activations.append(Activation(name.lower(), alpha, beta, bound))
    return tuple(tuple(activations[d * count : (d + 1) * count]) for d in range(directions))


def _read(lowering: Lowering, cell: Cell, node: Node) -> Any:
    """X W^T + b for all steps, directions and gates; b has both biases, but for the recurrent one of
    the hidden gate where GRU resets after the product."""
    x, w, _, b = (node.input(i) for i in range(4))

    def transposed(array: np.ndarray) -> np.ndarray:
        units = pack_units(cell, array)
        return np.ascontiguousarray(units.reshape(-1, units.shape[-1]).T)

    assert x is not None and w is not None
    features = w.tensor.dims[2] if w.tensor.dims else None
    operand = _computed(lowering, x, fitting(lowering, x, {2: features}))
    read = relax.op.matmul(operand, _packed(lowering, w, transposed))
    if b is None:
        return lowering.emit(read)
    kept = GATES[cell.op] - cell.linear_before_reset

    def own(array: np.ndarray) -> np.ndarray:
        return pack_units(cell, np.split(array, 2, 1)[0]).reshape(-1)

    def recurrent(array: np.ndarray) -> np.ndarray:
        units = pack_units(cell, np.split(array, 2, 1)[1])
        units[:, kept * cell.padded :] = 0
        return units.reshape(-1)

    return lowering.emit(relax.op.add(lowering.emit(read), _packed(lowering, b, own, recurrent)))


def _hidden_bias(lowering: Lowering, cell: Cell, b: Value | None) -> Any:
    """The recurrent bias of GRU's hidden gate."""
    if b is None:
        return lowering.constant(np.zeros((cell.directions, cell.padded), cell.dtype), "bias")
    return _packed(lowering, b, lambda a: pack_units(cell, a)[:, -cell.padded :])


def _initial(lowering: Lowering, cell: Cell, value: Value | None, dims: Sequence[Any]) -> Any:
    if value is None:
        return lowering.emit(relax.op.zeros(relax.ShapeExpr(dims), cell.dtype))
    return _computed(lowering, value)


def _computed(lowering: Lowering, value: Value | None, expr: Any = None) -> Any:
    """The expression of a value, or ``expr`` in its place, in the type that is computed in."""
    expr = lowering[value] if expr is None else expr
    assert value is not None
    dtype = float_type(value.tensor.dtype)
    return expr if dtype_of(value.type) == dtype else lowering.emit(relax.op.astype(expr, dtype))


def _packed(lowering: Lowering, value: Value | None, *packs: Pack) -> Any:
    """Weights reordered by ``packs``, summed over the packs. Those that are not constant are gathered by the
    packed positions of their elements, where position 0 is a zero."""
    assert value is not None
    dtype = float_type(value.tensor.dtype)
    if isinstance(value.encoding, Affine) and len(packs) == 1:
        parameter = _integers(lowering, value, value.encoding, packs[0])
        if parameter is not None:
            lowering.report_decoded(value, loaded=True)
            return parameter
    if value.is_constant:
        array = lowering.numbers(value).astype(dtype)
        return lowering.parameter(np.sum([pack(array) for pack in packs], axis=0), value.name)
    dims = value.tensor.dims
    if dims is None or not all(isinstance(d, int) for d in dims):
        raise Refused(f"weights of type {value.type}, whose sizes are not all known")
    positions = 1 + np.arange(np.prod(dims, dtype=np.int64)).reshape(dims)  # type: ignore[arg-type]
    flat = relax.op.reshape(_computed(lowering, value), (-1,))
    padded = lowering.emit(relax.op.concat([relax.const(np.zeros(1, dtype)), flat], 0))
    total: Any = None
    for pack in packs:
        order = np.ascontiguousarray(pack(positions))
        taken = relax.op.take(padded, lowering.constant(order.reshape(-1), "order"), 0)
        shaped = lowering.emit(relax.op.reshape(taken, order.shape))
        total = shaped if total is None else lowering.emit(relax.op.add(total, shaped))
    return total


def _integers(lowering: Lowering, value: Value, encoding: Affine, pack: Pack) -> Any:
    """Weights that the library stores as integers and decodes when it is loaded; None where the padding's
    zeros would not stay zeros, or where the scales are too large to pay."""
    if not encoding.is_symmetric or encoding.storage.bits < 8:
        return None
    codes = pack(encoding.values.astype(np.float64)).astype(encoding.values.dtype)
    scales = pack(np.broadcast_to(encoding.expanded(encoding.scale), encoding.values.shape))
    for axis in range(scales.ndim):
        most = scales.max(axis, keepdims=True)
        if ((scales == most) | (codes == 0)).all():
            scales = most
    if 8 * scales.size > codes.size:
        return None
    steps = (("scaled", float_type(value.tensor.dtype)),)
    return lowering.derived(steps, (codes, scales.astype(encoding.scale.dtype)), value.name)


RULES: dict[str, Rule] = dict.fromkeys(GATES, _recurrent)
