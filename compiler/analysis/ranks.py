"""Ranks that follow from what makes a value and from what reads it, where its type tells none.

    a = If(c) {then: Squeeze(x, 2), else: x}      a has 2 dims or, like x, 3
    y = LSTM(Unsqueeze(a, 0), ...)                an LSTM reads 3 dims, so that a has 2: ``then`` is taken

A run in which a value has another rank than its readers take is one that fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tersor.analysis.match import rank
from tersor.ir import Graph, Node, Value

Ranks = frozenset[int]

# Results have their first operand's rank.
_SAME = frozenset({
    "Identity", "Cast", "Dropout", "Clip", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "Tanh",
    "Softmax", "LogSoftmax", "Softplus", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Not", "Abs", "Neg",
    "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Floor", "Ceil", "Round", "Sign", "CumSum",
    "Slice", "LayerNormalization", "BatchNormalization",
})  # fmt: skip
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_RECURRENT_RANKS = {0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3, 6: 3, 7: 2}
_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})


@dataclass
class RankProofs:
    """What is proven of one graph as it stands.

    Attributes:
        depth: how far from a value is looked.
    """

    depth: int = 64
    _possible: dict[Value, Ranks | None] = field(default_factory=dict)
    _needed: dict[Value, Ranks | None] = field(default_factory=dict)

    def possible(self, value: Value, depth: int = 0) -> Ranks | None:
        """Ranks that the value may be made with; None where any."""
        if value not in self._possible:
            self._possible[value] = None  # What is asked again on the way is not told yet.
            self._possible[value] = self._made(value, depth) if depth < self.depth else None
        return self._possible[value]

    def needed(self, value: Value, depth: int = 0) -> Ranks | None:
        """Ranks of which the value has one in every run that does not fail; None where any."""
        if value not in self._needed:
            self._needed[value] = None
            found = self._read(value, depth) if depth < self.depth else []
            self._needed[value] = _intersection(found)
        return self._needed[value]

    def impossible(self, node: Node) -> list[Graph]:
        """Branches of an If whose results no reader takes: they are never taken in a run that succeeds."""
        return self._impossible(node, 0)

    def _impossible(self, node: Node, depth: int) -> list[Graph]:
        found = []
        for branch in node.subgraphs:
            # A file may name more results than its branches have.
            for made, result in zip(node.outputs, branch.outputs, strict=False):
                needed, possible = self.needed(made, depth + 1), self.possible(result, depth + 1)
                if needed is not None and possible is not None and not needed & possible:
                    found.append(branch)
                    break
        return found

    def _made(self, value: Value, depth: int) -> Ranks | None:
        node, told = value.producer, rank(value)
        made: Ranks | None = None
        if node is not None and node.op == "If":
            results = [
                b.outputs[value.index] for b in node.subgraphs if value.index < len(b.outputs)
            ]
            made = _union([self.possible(v, depth + 1) for v in results])
        elif node is not None and (added := _added(node)) is not None and value is node.output:
            (x, *_) = node.inputs
            of = None if x is None else self.possible(x, depth + 1)
            made = None if of is None else frozenset(r + added for r in of)
        # A file's own word for it, where nothing else tells.
        return made if made is not None or told is None else frozenset({told})

    def _read(self, value: Value, depth: int) -> list[Ranks | None]:
        found: list[Ranks | None] = []
        for use in value.uses:
            if isinstance(use.user, Graph):
                found.append(self._returned(value, use.user, use.operand, depth))
            elif use.user.graph is value.graph:  # Others may never run.
                found.append(self._taken(use.user, use.operand, depth))
        return found

    def _returned(self, value: Value, branch: Graph, index: int, depth: int) -> Ranks | None:
        """Of what a branch returns that is surely taken: ranks that the If's result may have."""
        node = branch.parent
        if node is None or node.op != "If" or not node.subgraphs or index >= len(node.outputs):
            return None
        if node.graph is not value.graph and branch is not value.graph:
            return None
        others = [b for b in node.subgraphs if b is not branch]
        if value.graph is not branch and self._impossible(node, depth + 1) != others:
            return None
        return self.needed(node.outputs[index], depth + 1)

    def _taken(self, node: Node, index: int, depth: int) -> Ranks | None:
        if node.op in _RECURRENT:
            return frozenset({_RECURRENT_RANKS[index]}) if index in _RECURRENT_RANKS else None
        if node.op in _WINDOWED and index == 0:
            kernel = node.attrs.get("kernel_shape")
            return frozenset({len(kernel) + 2}) if isinstance(kernel, tuple) and kernel else None
        if node.op == "Transpose":
            order = node.attrs.get("perm")
            return frozenset({len(order)}) if isinstance(order, tuple) and order else None
        if node.op == "Gemm" and index < 2:
            return frozenset({2})
        if node.op == "Concat":
            known = [rank(v) for v in node.inputs if v is not None]
            told = [frozenset({r}) for r in known if r is not None]
            return _intersection([*told, self.needed(node.output, depth + 1)])
        added = _added(node)
        if added is None or index != 0:
            return None
        needed = self.needed(node.output, depth + 1)
        return None if needed is None else frozenset(r - added for r in needed)


def _added(node: Node) -> int | None:
    """How many dims the result has more than the first operand; None where that is not known."""
    if node.op in _SAME:
        return 0
    if node.op not in ("Squeeze", "Unsqueeze"):
        return None
    axes = node.input(1)
    if axes is None or not axes.is_constant or not axes.numpy().size:
        return None  # Without axes a Squeeze takes all dims of 1.
    count = len(set(axes.numpy().reshape(-1).tolist()))
    return count if node.op == "Unsqueeze" else -count


def _intersection(sets: Iterable[Ranks | None]) -> Ranks | None:
    known = [s for s in sets if s is not None]
    return frozenset.intersection(*known) if known else None


def _union(sets: Sequence[Ranks | None]) -> Ranks | None:
    known = [s for s in sets if s is not None]
    return frozenset().union(*known) if known and len(known) == len(sets) else None
