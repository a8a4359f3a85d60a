"""The reference semantics of a graph: every node by its row's torch evaluation, constants decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.ir import DType, Graph, Node, TensorType, Value
from tersor.ops.table import Table

__all__ = ["evaluate", "evaluate_node", "run", "to_torch"]


def evaluate(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs ``graph`` in torch and returns its outputs by name.

    Raises:
        Unsupported: an op has no torch evaluation, or torch is not installed.
        KeyError: an input is missing.
    """
    values: dict[Value, Any] = {v: to_torch(inputs[v.name]) for v in graph.inputs}
    run(graph, values)
    return {
        name: _to_numpy(values[value], value)
        for name, value in zip(graph.output_names, graph.outputs, strict=True)
    }


def run(graph: Graph, values: dict[Value, Any], *, straight_through: bool = False) -> None:
    """Fills ``values`` with torch tensors for all of the graph's values; inputs and captured outer
    values must be there, and so may constants, which are then taken as they are.

    ``straight_through``: where an op rounds, gradients are those of what stands in for it
    (``OpDef.straight_through``); codes are floats there.
    """
    for constant in graph.constants.values():
        if constant not in values:
            values[constant] = to_torch(constant.numpy())
    for node in graph.nodes:
        for value, tensor in zip(
            node.outputs, evaluate_node(node, values, straight_through), strict=False
        ):
            values[value] = tensor


def evaluate_node(
    node: Node, values: dict[Value, Any], straight_through: bool = False
) -> tuple[Any, ...]:
    """Outputs of one node from its operands' tensors in ``values``."""
    assert node.graph is not None and isinstance(node.graph.table, Table)
    row = node.graph.table.get(node.op)
    if row is None or row.torch is None:
        raise Unsupported(f"{node.label}: {node.op} has no torch evaluation")
    operands = [None if v is None else values[v] for v in node.inputs]
    attrs: dict[str, Any] = dict(node.attrs)
    if node.subgraphs:
        attrs["run"] = lambda sub, *args: _run_subgraph(sub, values, args, straight_through)
    if node.op in _NEEDS_OUTPUTS:
        attrs["outputs"] = len(node.outputs)
    result = row.torch(*operands, **attrs)
    results = result if isinstance(result, tuple) else (result,)
    if straight_through and any(getattr(v, "requires_grad", False) for v in operands):
        return _with_stand_in(node, operands, results)
    return results


def _with_stand_in(node: Node, operands: list[Any], results: tuple[Any, ...]) -> tuple[Any, ...]:
    """The results, the first one with the gradient of what stands in for it."""
    assert node.graph is not None and isinstance(node.graph.table, Table)
    graph = node.graph.table.straight_through(node)
    if graph is None:
        return results
    given = [tensor for tensor in (*operands, *results[: len(node.outputs)]) if tensor is not None]
    values = dict(zip(graph.inputs, given, strict=True))
    run(graph, values)
    soft, (hard, *others) = values[graph.outputs[0]], results
    return soft + (hard.to(soft.dtype) - soft).detach(), *others


# Split without sizes divides by the number of its outputs, which is not an attribute.
_NEEDS_OUTPUTS = {"Split"}


def _run_subgraph(
    graph: Graph, outer: dict[Value, Any], args: tuple[Any, ...], straight_through: bool
) -> list[Any]:
    values = dict(outer)
    values.update(zip(graph.inputs, args, strict=True))
    run(graph, values, straight_through=straight_through)
    return [values[v] for v in graph.outputs]


def to_torch(array: np.ndarray) -> Any:
    """A torch tensor of the same numbers; 2- and 4-bit numbers become bytes."""
    import torch

    array = np.ascontiguousarray(array).reshape(np.shape(array))
    name = DType.of(array)
    if name is DType.BF16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if name.bits < 8:
        return torch.from_numpy(array.astype(np.int8 if name.value[0] == "i" else np.uint8))
    # To numpy an array of one element is contiguous whatever its stride; torch needs it positive.
    plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if plain else array.copy())


def _to_numpy(tensor: Any, value: Value) -> np.ndarray:
    import torch

    if not isinstance(tensor, torch.Tensor):
        return np.asarray(tensor)
    dtype = value.type.dtype.numpy if isinstance(value.type, TensorType) else None
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array if dtype is None else array.astype(dtype, copy=False)
