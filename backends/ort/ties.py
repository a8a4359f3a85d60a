"""Equal constants are written once, and so are a matrix and its transpose, a vector and the same as a
column.

    Gather(@e[v, d], ids), MatMul(h, @e'[d, v])   ->   @e, and Transpose(@e) for the MatMul

A head that is tied to the embedding reads its transpose, which is a view of the same memory all the way
through the passes, or two matrices that were quantized alike.  In the file it would be another matrix.
ONNX Runtime computes the transpose once, when it loads the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tersor.ir import Graph, Value

LEAST_BYTES = 1024  # Smaller ones are not worth a node.
SAMPLE = 16  # Numbers that are compared before whole matrices are.


def hold_once(graph: Graph) -> None:
    """Leaves of equal constants, and of matrices that are another's transpose, the first that lies in
    order; in place. Constants of subgraphs become the outermost graph's where that has the same."""
    first: dict[tuple[object, ...], list[Value]] = {}
    for value, array in sorted(_large(graph), key=lambda found: not found[1].flags.c_contiguous):
        candidates = first.setdefault(_key(array), [])
        for kept in candidates:
            if kept.graph not in (graph, value.graph):
                continue  # Not to be seen from here.
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
    """What equal arrays and transposed matrices have in common, and few others do."""
    array = array.squeeze()
    if array.ndim != 2:
        return array.dtype, array.shape, array.reshape(-1)[:SAMPLE].tobytes()
    return array.dtype, frozenset(array.shape), array.diagonal()[:SAMPLE].tobytes()


def _as(graph: Graph, kept: Value, value: Value, array: np.ndarray) -> Value | None:
    """The numbers of ``value``, made of ``kept``; None where these are others."""
    have, owner = kept.numpy(), kept.graph
    if _equal(have, array):
        return kept
    with owner.at(next(owner.nodes, None)):
        if array.ndim == have.ndim == 2 and _equal(have.T, array):
            return owner.emit("Transpose", [kept], {"perm": (1, 0)}, name=value.name)
        if have.shape != array.shape and _equal(have.squeeze(), array.squeeze()):
            shape = owner.constant(np.array(array.shape, np.int64), "shape")
            return owner.emit("Reshape", [kept, shape], name=value.name)
    return None


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """To the bit: zeros of either sign are not the same, and a NaN is what it is."""
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
    """Some rows at a time: weights may be mapped, and more than memory holds."""
    step = max(1, (1 << 22) * len(array) // max(array.nbytes, 1))
    for i in range(0, len(array), step):
        yield array[i : i + step]
