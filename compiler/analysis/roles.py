"""What integer and string inputs mean to their users, so that valid inputs can be synthesized.

Reshape(x, input)           a shape:  [-1, 1, 1]
Split(x, input)             sizes that add up to the axis
Gather(x, input)            an index that is always valid:  0
Equal(input, 16000)         the number it is compared with:  16000
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tersor.analysis.match import dims, has_trait, scalar
from tersor.analysis.vocabulary import walk_ids
from tersor.ir import Graph, Node, Value
from tersor.ir.dims import evaluate, symbols

Sizes = Mapping[str, int]
Shape = Sequence[int]
END = 2**31 - 1  # Beyond the end of every axis, in 32 bits too.
_ANY_TEXT = "a"


def wanted_integers(value: Value, shape: Shape, sizes: Sizes) -> np.ndarray:
    """Integers of ``shape`` that are valid for the users of an input; ones where nothing is known."""
    for alias in walk_ids(value)[1]:
        for use in alias.uses:
            if isinstance(use.user, Graph):
                continue
            integers = _wanted(use.user, use.operand, shape, sizes)
            if integers is not None:
                return integers
    return np.ones(shape, np.int64)


def known_text(value: Value) -> str:
    """A string from a user's vocabulary (a key of a label encoder)."""
    for use in value.uses:
        if isinstance(use.user, Node):
            for keys in use.user.attrs.values():
                if isinstance(keys, (list, tuple)) and keys and isinstance(keys[0], str):
                    return keys[0]
    return _ANY_TEXT


def _wanted(node: Node, place: int, shape: Shape, sizes: Sizes) -> np.ndarray | None:
    if has_trait(node, "elementwise") and has_trait(node, "discrete") and len(node.inputs) == 2:
        known = scalar(node.inputs[1 - place])
        # A scalar that is compared with a constant selects a path; elements of a tensor are data.
        return None if known is None or np.prod(shape) != 1 else np.full(shape, int(known))
    rule = _RULES.get((node.op, place))
    return rule(node, shape, sizes) if rule is not None else None


def _shape_of_all(node: Node, shape: Shape, sizes: Sizes) -> np.ndarray | None:
    if len(shape) != 1 or not shape[0]:
        return None
    return np.array([-1, *[1] * (shape[0] - 1)])


def _equal_parts(node: Node, shape: Shape, sizes: Sizes) -> np.ndarray | None:
    whole = dims(node.inputs[0]) if node.inputs[0] is not None else None
    axis = node.attrs.get("axis", 0)
    dim = whole[axis] if whole and isinstance(axis, int) else None
    if dim is None or not symbols(dim) <= sizes.keys() or len(shape) != 1 or not shape[0]:
        return None
    size = evaluate(dim, sizes)
    parts = np.full(shape, size // shape[0])
    parts[0] += size - parts.sum()
    return parts


def _zeros(node: Node, shape: Shape, sizes: Sizes) -> np.ndarray:
    return np.zeros(shape, np.int64)


def _axes(node: Node, shape: Shape, sizes: Sizes) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)


def _ends(node: Node, shape: Shape, sizes: Sizes) -> np.ndarray:
    return np.full(shape, END)


Rule = Callable[[Node, Shape, Sizes], np.ndarray | None]
_RULES: dict[tuple[str, int], Rule] = {
    ("Reshape", 1): _shape_of_all,
    ("Split", 1): _equal_parts,
    ("Gather", 1): _zeros,
    ("GatherElements", 1): _zeros,
    ("GatherND", 1): _zeros,
    ("ScatterElements", 1): _zeros,
    ("ScatterND", 1): _zeros,
    ("Pad", 1): _zeros,
    ("Slice", 1): _zeros,
    ("Slice", 2): _ends,
    ("Slice", 3): _axes,
    ("Squeeze", 1): _axes,
    ("Unsqueeze", 1): _axes,
}
