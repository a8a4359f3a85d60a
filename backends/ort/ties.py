"""Equal constants are stored once; so are a matrix and its transpose, or a vector and the same numbers as
a column.

    Gather(@e[v, d], ids), MatMul(h, @e'[d, v])   ->   @e, and Transpose(@e) for the MatMul

A head that is tied to the embedding reads its transpose: a view of the same memory throughout the passes,
or a matrix quantized the same way.  Otherwise the file would store it as a second matrix. ONNX Runtime
computes the transpose once, when it loads the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tersor.ir import Graph, Value

LEAST_BYTES = 1024  # Smaller constants are not worth a node.
SAMPLE = 16  # Numbers that are compared before whole arrays are.


def merge_equal_constants(graph: Graph) -> None:
    """Replaces constants that equal another, or its transpose, by that one, in place. The first contiguous
    one is kept; constants of subgraphs are replaced by equal ones of the outermost graph."""
    first: dict[tuple[object, ...], list[Value]] = {}
    for value, array in sorted(_large(graph), key=lambda entry: not entry[1].flags.c_contiguous):
        candidates = first.setdefault(_key(array), [])
        for kept in candidates:
            if kept.graph not in (graph, value.graph):
                continue  # Not visible from here.
            if (same := _as(graph, kept, value, array)) is not None:
                value.graph.replace(value, same)
                value.graph.erase_constant(value)
                break
        else:
            candidates.append(value)


def _large(graph: Graph) -> Iterator[tuple[Value, np.ndarray]]:
    for owner in graph.all_graphs():
        for value in list(owner.constants.values()):
            if value.is_dense and value.uses and value.numpy().nbytes >= LEAST_BYTES:
                yield value, value.numpy()


def _key(array: np.ndarray) -> tuple[object, ...]:
    """A cheap key that is the same for equal arrays and for transposed matrices."""
    array = array.squeeze()
    if array.ndim != 2:
        return array.dtype, array.shape, array.reshape(-1)[:SAMPLE].tobytes()
    return array.dtype, frozenset(array.shape), array.diagonal()[:SAMPLE].tobytes()


def _as(graph: Graph, kept: Value, value: Value, array: np.ndarray) -> Value | None:
    """The numbers of ``value``, computed from ``kept``; None where they differ."""
    numbers, owner = kept.numpy(), kept.graph
    if _equal(numbers, array):
        return kept
    with owner.at(next(owner.nodes, None)):
        if array.ndim == numbers.ndim == 2 and _equal(numbers.T, array):
            return owner.emit("Transpose", [kept], {"perm": (1, 0)}, name=value.name)
        if numbers.shape != array.shape and _equal(numbers.squeeze(), array.squeeze()):
            shape = owner.constant(np.array(array.shape, np.int64), "shape")
            return owner.emit("Reshape", [kept, shape], name=value.name)
    return None


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Bitwise: -0 differs from 0, and a NaN equals the same NaN."""
    if a.shape != b.shape:
        return False
    if a.__array_interface__ == b.__array_interface__ and not a.dtype.hasobject:
        return True
    if a.dtype.hasobject:
        return bool((a == b).all())
    return all(
        np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(y).tobytes()
        for x, y in zip(_parts(a), _parts(b), strict=True)
    )


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time: weights may be memory-mapped, and larger than memory."""
    step = max(1, (1 << 22) * len(array) // max(array.nbytes, 1))
    for i in range(0, len(array), step):
        yield array[i : i + step]
