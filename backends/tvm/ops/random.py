"""Random number generators: none is lowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tersor.backends.tvm.lowering import Lowering, Refused, Rule
from tersor.ir import Node


def _refuse(lowering: Lowering, node: Node) -> Sequence[Any]:
    raise Refused("TVM draws no random numbers")


RULES: dict[str, Rule] = dict.fromkeys(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
     "Multinomial"),
    _refuse,
)  # fmt: skip
