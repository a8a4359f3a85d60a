"""Scores behind a graph's discrete outputs: a label does not show how close the decision was.

    labels = ArgMax(Cast(logits))       the scores of labels are logits

The search goes backwards from each output, through ops that only move or convert values, to ArgMax, TopK,
Softmax and any other op that computes integers or booleans from floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tersor.analysis.match import has_trait
from tersor.ir import Graph, Node, TensorType, Value

_MERGES = frozenset({"Cast", "Concat", "Where"})  # Like movements, they copy elements of operands.
_MOST = 8  # Scores per output.
_FAR = 64  # Nodes visited per output.


@dataclass(frozen=True)
class Score:
    """Attributes:
    value: the scores.
    op: the op that decides by them.
    output: the name of the output.
    index: its index among the output's scores.
    """

    value: Value
    op: str
    output: str
    index: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Equal for the same scores of a graph with other weights."""
        return self.output, self.op, self.index

    @property
    def decides(self) -> str:
        """For messages: ``ArgMax of labels``."""
        return f"{self.op} of {self.output}"


def scores_of(graph: Graph) -> list[Score]:
    """The scores of all outputs, without duplicates, outputs and values in subgraphs."""
    scores: list[Score] = []
    known = set(graph.outputs)
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        count = 0
        for decided_by, op in _before(value):
            if decided_by not in known and count < _MOST:
                known.add(decided_by)
                scores.append(Score(decided_by, op, name, count))
                count += 1
    return scores


def rounded(value: Value) -> bool:
    """Whether a discrete output is a rounded number rather than a decision."""
    from tersor.ops import TABLE  # It loads ONNX's schemas, which `import tersor` must not.

    return not _is_float(value) and any(TABLE.has(op, "rounding") for _, op in _before(value))


def unordered_axis(value: Value) -> int | None:
    """The axis of TopK if ``value`` is its indices, else None."""
    node = value.producer
    while node is not None and node.op in ("Identity", "Cast"):
        value = node.input(0) or value
        node = value.producer
    if node is None or node.op != "TopK" or value is not node.outputs[1]:
        return None
    return int(node.attrs["axis"])  # type: ignore[arg-type]


def with_scores(graph: Graph) -> tuple[Graph, dict[str, Score]]:
    """A copy that also returns the scores, and the added scores by output name."""
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
    """(scores, op) that decide ``value``, the nearest first."""
    work, seen = [value], set[Value]()
    while work and len(seen) < _FAR:
        at = work.pop(0)
        node = at.producer
        if at in seen or node is None or node.graph is None or node.graph.parent is not None:
            continue
        seen.add(at)
        for operand in _operands(node, at):
            if _is_float(operand) and (has_trait(node, "decision") or not _is_float(at)):
                yield operand, node.op
            work.append(operand)


def _operands(node: Node, result: Value) -> list[Value]:
    """The operands that ``result`` is decided by or copied from."""
    if has_trait(node, "shape") or node.subgraphs:
        return []
    if has_trait(node, "decision"):
        operands = [node.input(0)]
    elif node.op in _MERGES or has_trait(node, "movement") or not _is_float(result):
        operands = list(node.inputs)
    else:
        operands = []
    return [v for v in operands if v is not None and not v.is_constant and not v.is_input]


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.is_float
