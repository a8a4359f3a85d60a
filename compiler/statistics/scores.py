"""The scores by which a graph decides what it returns: a label says little of how near it was to another.

    labels = ArgMax(Cast(logits))       the scores of labels are logits

Looked for from each output backwards, through what only moves or converts values, to ArgMax, TopK, Softmax
and whatever else makes integers or booleans of floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tersor.analysis.match import has_trait
from tersor.ir import Graph, Node, TensorType, Value

DECISIONS = frozenset({"ArgMax", "ArgMin", "TopK", "Softmax", "LogSoftmax", "Hardmax", "Sigmoid"})
_MERGES = frozenset({"Cast", "Concat", "Where"})  # Besides movements: results are made of operands.
_MOST = 8  # Scores of one output.
_FAR = 64  # Nodes that are looked at for one output.


@dataclass(frozen=True)
class Score:
    """Attributes:
    value: the scores.
    op: what decides by them.
    output: the name of what is returned.
    index: their number among those of the output.
    """

    value: Value
    op: str
    output: str
    index: int

    @property
    def key(self) -> tuple[str, str, int]:
        """The same for the same scores of a graph with other weights."""
        return self.output, self.op, self.index

    @property
    def decides(self) -> str:
        """For messages: ``ArgMax of labels``."""
        return f"{self.op} of {self.output}"


def scores_of(graph: Graph) -> list[Score]:
    """Of all outputs, as far as they lie at the outermost level, none twice and no outputs."""
    found: list[Score] = []
    known = set(graph.outputs)
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        count = 0
        for scores, op in _before(value):
            if scores not in known and count < _MOST:
                known.add(scores)
                found.append(Score(scores, op, name, count))
                count += 1
    return found


def rounded(value: Value) -> bool:
    """Whether an output that is no float is a number rounded, and no choice."""
    from tersor.ops import TABLE  # Loads the schemas of ONNX, which `import tersor` does without.

    return not _is_float(value) and any(TABLE.has(op, "rounding") for _, op in _before(value))


def unordered_axis(value: Value) -> int | None:
    """The axis of TopK, where ``value`` are its indices."""
    node = value.producer
    while node is not None and node.op in ("Identity", "Cast"):
        value = node.input(0) or value
        node = value.producer
    if node is None or node.op != "TopK" or value is not node.outputs[1]:
        return None
    return int(node.attrs["axis"])  # type: ignore[arg-type]


def with_scores(graph: Graph) -> tuple[Graph, dict[str, Score]]:
    """A copy that returns the scores too, and what the outputs are that it has more, by name."""
    copy = graph.copy()
    added: dict[str, Score] = {}
    for score in scores_of(copy):
        name = "/".join(map(str, score.key))
        if name not in copy.output_names:
            added[name] = score
    values = [score.value for score in added.values()]
    copy.set_outputs([*copy.outputs, *values], [*copy.output_names, *added])
    return copy, added


def _before(value: Value) -> Iterator[tuple[Value, str]]:
    """(scores, op) from which ``value`` is decided, the nearest first."""
    work, seen = [value], set[Value]()
    while work and len(seen) < _FAR:
        at = work.pop(0)
        node = at.producer
        if at in seen or node is None or node.graph is None or node.graph.parent is not None:
            continue
        seen.add(at)
        for operand in _operands(node, at):
            if _is_float(operand) and (node.op in DECISIONS or not _is_float(at)):
                yield operand, node.op
            work.append(operand)


def _operands(node: Node, result: Value) -> list[Value]:
    """Those that ``result`` is decided by, or moved from."""
    if has_trait(node, "shape") or node.subgraphs:
        return []
    if node.op in DECISIONS:
        held = [node.input(0)]
    elif node.op in _MERGES or has_trait(node, "movement") or not _is_float(result):
        held = list(node.inputs)
    else:
        held = []
    return [v for v in held if v is not None and not v.is_constant and not v.is_input]


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.is_float
