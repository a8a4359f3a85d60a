"""Sequences and optional values, which TVM does not have; OptionalHasElement of a tensor is a constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.ir import Node, TensorType


def _no_sequences(lowering: Lowering, node: Node) -> Sequence[Any]:
    raise Refused("TVM has no sequences")


def _no_optionals(lowering: Lowering, node: Node) -> Sequence[Any]:
    raise Refused("TVM has no optional values")


def _get_element(lowering: Lowering, node: Node) -> Sequence[Any]:
    value = node.input(0)
    if value is None or not isinstance(value.type, TensorType):
        raise Refused("TVM has no optional values")
    return [lowering[value]]


def _has_element(lowering: Lowering, node: Node) -> Sequence[Any]:
    value = node.input(0)
    if value is not None and not isinstance(value.type, TensorType):
        raise Refused("TVM has no optional values")
    return [lowering.constant(np.array(value is not None), "has_element")]


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceAt",
            "SequenceInsert",
            "SequenceErase",
            "SequenceLength",
            "ConcatFromSequence",
            "SplitToSequence",
        ),
        _no_sequences,
    ),
    "Optional": _no_optionals,
    "OptionalGetElement": _get_element,
    "OptionalHasElement": _has_element,
}
