"""GELU and SiLU from their formulas.

    erf form    0.5 x (1 + erf(x / sqrt(2)))                                      Gelu{none}
    tanh form   0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))                 Gelu{tanh}
    SiLU        x sigmoid(x)                                                      Swish{alpha=1}

Products match in any order and association: their factors are collected first.
(Hendrycks and Gimpel 2016, arXiv 1606.08415.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tersor.analysis.match import is_scalar, operand, operand_orders, producer_if, rank, scalar
from tersor.ir import Graph, Node, Value
from tersor.pipeline import Keeps, Pass, Rewrite


@dataclass(frozen=True)
class FuseGelu(Pass):
    """No options."""

    keeps = Keeps(values=1e-5)

    def visit(self, graph: Graph, node: Node) -> Rewrite:
        if node.op not in ("Mul", "Div"):
            return None
        number, factors = _factors(node)
        if len(factors) != 2:
            return None
        for x, other in (factors, factors[::-1]):
            if rank(x) is None or rank(x) != rank(node.output):
                continue  # A constant of higher rank, [[[0.5]]], raises the rank of the product.
            if abs(number - 0.5) < 1e-6 and (form := _one_plus(x, other)) is not None:
                return graph.emit("Gelu", [x], {"approximate": form})
            gate = producer_if(other, "Sigmoid")
            if number == 1.0 and gate is not None and operand(gate, 0) is x:
                return graph.emit("Swish", [x], {"alpha": 1.0})
        return None


def _factors(node: Node) -> tuple[float, list[Value]]:
    """(product of the constants, other factors) of a tree of products with at most 4 such factors."""
    number, work = 1.0, [node.output]
    factors: list[Value] = []
    while work and len(factors) < 4:
        value = work.pop()
        producer = value.producer
        inner = value is node.output or len(value.uses) == 1
        constant = scalar(value)
        if constant is not None:
            number *= constant
        elif producer is not None and producer.op == "Mul" and inner:
            work += [operand(producer, 0), operand(producer, 1)]
        elif producer is not None and producer.op == "Div" and inner and scalar(producer.inputs[1]):
            number /= scalar(producer.inputs[1]) or 1.0
            work.append(operand(producer, 0))
        else:
            factors.append(value)
    return number, factors


def _one_plus(x: Value, value: Value) -> str | None:
    """``none`` if value is 1 + erf(x / sqrt(2)), ``tanh`` if it is 1 + tanh(…)."""
    total = producer_if(value, "Add")
    if total is None:
        return None
    for inner, one in operand_orders(total):
        if not is_scalar(one, 1):
            continue
        if (erf := producer_if(inner, "Erf")) is not None and _is_times(
            operand(erf, 0), x, math.sqrt(0.5)
        ):
            return "none"
        if (tanh := producer_if(inner, "Tanh")) is not None and _is_tanh_inner(operand(tanh, 0), x):
            return "tanh"
    return None


def _is_times(value: Value, x: Value, number: float) -> bool:
    """Whether ``value`` is x times ``number``."""
    node = value.producer
    if node is None or node.op not in ("Mul", "Div"):
        return False
    actual, factors = _factors(node)
    return factors == [x] and math.isclose(actual, number, rel_tol=1e-4)


def _is_tanh_inner(value: Value, x: Value) -> bool:
    """sqrt(2 / pi) (x + 0.044715 x^3)"""
    node = value.producer
    if node is None or node.op != "Mul":
        return False
    number, factors = _factors(node)
    if len(factors) != 1 or not math.isclose(number, math.sqrt(2 / math.pi), rel_tol=1e-4):
        return False
    total = producer_if(factors[0], "Add")
    if total is None:
        return False
    return any(a is x and _is_cube(b, x) for a, b in operand_orders(total))


def _is_cube(value: Value, x: Value) -> bool:
    """0.044715 x^3, with the cube as Pow or product."""
    node = value.producer
    if node is None or node.op != "Mul":
        return False
    number, factors = _factors(node)
    if not math.isclose(number, 0.044715, rel_tol=1e-4):
        return False
    if factors == [x, x, x]:
        return True
    power = producer_if(factors[0], "Pow") if len(factors) == 1 else None
    return power is not None and operand(power, 0) is x and is_scalar(operand(power, 1), 3)
