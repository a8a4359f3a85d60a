"""All forms of a linear layer as one op: ``tersor.Linear(x, W[k, n], b[n]) = x W + b``.

MatMul(x, @W)                      -> Linear(x, W)
Add(Linear(x, W), @b[n])           -> Linear(x, W, b)
Gemm(x, @W, @b), transA = 0        -> Linear(x, alpha W or alpha W^T, beta b)
Reshape(Linear(Reshape(x)))        -> Linear(x)      if rows were only merged and split again
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import has_one_use, operand, operand_and_constant, producer_if, rank
from tersor.ir import Graph, Node, Value
from tersor.ir.dims import product
from tersor.pipeline import ROUNDING, Pass, Rewrite, Skip


@dataclass(frozen=True)
class MatMulToLinear(Pass):
    """No options."""

    keeps = ROUNDING

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op == "MatMul":
            return _matmul(graph, node)
        if node.op == "Gemm":
            return _gemm(graph, node)
        if node.op == "Add":
            return _bias(graph, node)
        if node.op == "Reshape":
            return _rows(graph, node)
        return None


def _is_weight(value: Value) -> bool:
    return value.is_constant and value.tensor.rank == 2 and value.tensor.dtype.is_float


def _matmul(graph: Graph, node: Node) -> Rewrite:
    x, weight = operand(node, 0), operand(node, 1)
    if not _is_weight(weight) or x.is_constant or rank(x) in (None, 0, 1):
        return None
    return graph.emit("tersor.Linear", [x, weight], name=node.output.name)


def _gemm(graph: Graph, node: Node) -> Rewrite:
    x, weight, bias = operand(node, 0), operand(node, 1), node.input(2)
    if not _is_weight(weight):
        return None
    if rank(x) is None:
        raise Skip("the type of its first operand is unknown")
    if node.attrs["transA"]:
        raise Skip("its first operand is transposed")
    if bias is not None and not _is_row(bias, weight, int(node.attrs["transB"])):  # type: ignore[arg-type]
        raise Skip("its bias is not one constant row")
    alpha, beta = node.attrs["alpha"], node.attrs["beta"]
    encoding, dtype = weight.encoding, weight.tensor.dtype.numpy
    assert encoding is not None
    if node.attrs["transB"]:
        # A view if possible: memory-mapped weights may exceed the memory.
        encoding = encoding.permute((1, 0))
    if alpha != 1.0:
        encoding = encoding.scaled(np.asarray(alpha, dtype), None)
    if encoding is not weight.encoding:
        weight = graph.constant(encoding, weight.name)
    operands: list[Value | None] = [x, weight]
    if bias is not None and beta != 0.0:
        columns = weight.tensor.shape[1]
        row = np.broadcast_to(bias.numpy().reshape(-1), (columns,)) * np.asarray(beta, dtype)
        operands.append(graph.constant(np.ascontiguousarray(row), bias.name))
    return graph.emit("tersor.Linear", operands, name=node.output.name)


def _is_row(bias: Value, weight: Value, transposed: int) -> bool:
    if not bias.is_dense:
        return False
    columns = weight.tensor.shape[0 if transposed else 1]
    return bias.tensor.shape in ((columns,), (1, columns), (1,), (), (1, 1))


def _bias(graph: Graph, node: Node) -> Rewrite:
    pair = operand_and_constant(node)
    if pair is None:
        return None
    y, bias = pair
    linear = producer_if(y, "tersor.Linear")
    if linear is None or linear.attrs["activation"] != "none" or linear.input(2) is not None:
        return None
    columns = operand(linear, 1).tensor.shape[1]
    if (
        bias.tensor.shape not in ((columns,), (1, columns), (1, 1, columns))
        or node.output.type != y.type
    ):
        return None
    if not has_one_use(y):
        raise Skip("the product has another user than the bias")
    if bias.tensor.rank != 1:
        bias = graph.constant(bias.numpy().reshape(-1), bias.name)
    operands = [operand(linear, 0), operand(linear, 1), bias]
    return graph.emit("tersor.Linear", operands, name=node.output.name, scope=linear.scope)


def _rows(graph: Graph, node: Node) -> Rewrite:
    """x[a, b, k] -> [a*b, k] -> Linear -> [a*b, n] -> [a, b, n]"""
    linear = producer_if(operand(node, 0), "tersor.Linear")
    merge = producer_if(operand(linear, 0), "Reshape") if linear is not None else None
    if linear is None or merge is None:
        return None
    x, columns = operand(merge, 0), linear.output.tensor.dims
    have, merged, out = x.tensor.dims, merge.output.tensor.dims, node.output.tensor.dims
    if have is None or merged is None or out is None or columns is None or None in (*have, *out):
        return None
    lead = out[:-1]
    kept = have[: len(lead)] == lead and product(have[len(lead) :]) == merged[-1]
    if not kept or out[-1] != columns[-1] or len(have) < len(out):
        return None
    if not has_one_use(linear.output):
        raise Skip("the merged rows have another user")
    if len(have) > len(out):  # The last axis was merged by the same Reshape.
        target = np.array([*[0] * len(lead), merged[-1]], np.int64)
        x = graph.emit("Reshape", [x, graph.constant(target, "shape")])
    operands = [x, *linear.inputs[1:]]
    return graph.emit(
        "tersor.Linear", operands, linear.attrs, name=node.output.name, scope=linear.scope
    )
