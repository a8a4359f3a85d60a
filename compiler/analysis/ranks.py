"""Rank inference, forwards from producers and backwards from users, for values of unknown rank.

    a = If(c) {then: Squeeze(x, 2), else: x}      a has rank 2 or, like x, 3
    y = LSTM(Unsqueeze(a, 0), ...)                an LSTM takes rank 3, so a has rank 2: ``then`` runs

Only runs that succeed count: one in which a value has a rank that its users reject fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tersor.analysis.match import rank
from tersor.ir import Graph, Node, Value
from tersor.ops import TABLE

Ranks = frozenset[int]

_RECURRENT_RANKS = {0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3, 6: 3, 7: 2}


@dataclass
class RankProofs:
    """Memoized inference over one graph, which must not change meanwhile.

    Attributes:
        depth: how many edges from a value the search goes.
    """

    depth: int = 64
    _possible: dict[Value, Ranks | None] = field(default_factory=dict)
    _needed: dict[Value, Ranks | None] = field(default_factory=dict)

    def possible(self, value: Value, depth: int = 0) -> Ranks | None:
        """Ranks that the producer may give the value; None: any."""
        if value not in self._possible:
            self._possible[value] = None  # Breaks cycles: unknown while in progress.
            self._possible[value] = self._by_producer(value, depth) if depth < self.depth else None
        return self._possible[value]

    def needed(self, value: Value, depth: int = 0) -> Ranks | None:
        """Ranks that all users accept; None: any."""
        if value not in self._needed:
            self._needed[value] = None
            by_use = self._by_users(value, depth) if depth < self.depth else []
            self._needed[value] = _intersection(by_use)
        return self._needed[value]

    def impossible(self, node: Node) -> list[Graph]:
        """Branches of an If that no successful run takes: a result has a rank that its users reject."""
        return self._impossible(node, 0)

    def _impossible(self, node: Node, depth: int) -> list[Graph]:
        branches = []
        for branch in node.subgraphs:
            # A file may declare more results than its branches have.
            for output, result in zip(node.outputs, branch.outputs, strict=False):
                needed, possible = self.needed(output, depth + 1), self.possible(result, depth + 1)
                if needed is not None and possible is not None and not needed & possible:
                    branches.append(branch)
                    break
        return branches

    def _by_producer(self, value: Value, depth: int) -> Ranks | None:
        node, declared = value.producer, rank(value)
        inferred: Ranks | None = None
        if node is not None and node.op == "If":
            results = [
                b.outputs[value.index] for b in node.subgraphs if value.index < len(b.outputs)
            ]
            inferred = _union([self.possible(v, depth + 1) for v in results])
        elif node is not None and (added := _added(node)) is not None and value is node.output:
            (x, *_) = node.inputs
            of = None if x is None else self.possible(x, depth + 1)
            inferred = None if of is None else frozenset(r + added for r in of)
        # What the file declares is trusted only where nothing can be inferred.
        return inferred if inferred is not None or declared is None else frozenset({declared})

    def _by_users(self, value: Value, depth: int) -> list[Ranks | None]:
        accepted: list[Ranks | None] = []
        for use in value.uses:
            if isinstance(use.user, Graph):
                accepted.append(self._by_output(value, use.user, use.operand, depth))
            elif use.user.graph is value.graph:  # Users in subgraphs may never run.
                accepted.append(self._by_user(use.user, use.operand, depth))
        return accepted

    def _by_output(self, value: Value, branch: Graph, index: int, depth: int) -> Ranks | None:
        """Of an output of a branch that certainly runs: what users of the If's result accept."""
        node = branch.parent
        if node is None or node.op != "If" or not node.subgraphs or index >= len(node.outputs):
            return None
        if node.graph is not value.graph and branch is not value.graph:
            return None
        others = [b for b in node.subgraphs if b is not branch]
        if value.graph is not branch and self._impossible(node, depth + 1) != others:
            return None
        return self.needed(node.outputs[index], depth + 1)

    def _by_user(self, node: Node, index: int, depth: int) -> Ranks | None:
        if any(form.state is not None for form in TABLE.weights(node)):
            return frozenset({_RECURRENT_RANKS[index]}) if index in _RECURRENT_RANKS else None
        kernel = node.attrs.get("kernel_shape")
        if kernel is not None and index == 0 and not TABLE.is_opaque(node.op):
            return frozenset({len(kernel) + 2}) if isinstance(kernel, tuple) and kernel else None
        if node.op == "Transpose":
            order = node.attrs.get("perm")
            return frozenset({len(order)}) if isinstance(order, tuple) and order else None
        if node.op == "Gemm" and index < 2:
            return frozenset({2})
        if node.op == "Concat":
            known = [rank(v) for v in node.inputs if v is not None]
            declared = [frozenset({r}) for r in known if r is not None]
            return _intersection([*declared, self.needed(node.output, depth + 1)])
        added = _added(node)
        if added is None or index != 0:
            return None
        needed = self.needed(node.output, depth + 1)
        return None if needed is None else frozenset(r - added for r in needed)


def _added(node: Node) -> int | None:
    """Rank of the result minus rank of the first operand; None where unknown."""
    if TABLE.has(node.op, "rank") or _is_alike(node):
        return 0
    if node.op not in ("Squeeze", "Unsqueeze"):
        return None
    axes = node.input(1)
    if axes is None or not axes.is_constant or not axes.numpy().size:
        return None  # Without axes a Squeeze drops all dims of 1.
    count = len(set(axes.numpy().reshape(-1).tolist()))
    return count if node.op == "Unsqueeze" else -count


def _is_alike(node: Node) -> bool:
    """Whether the result has the first operand's rank by the op's traits."""
    others = [v for v in node.inputs[1:] if v is not None]
    if TABLE.has(node.op, "elementwise"):
        return all(rank(v) == 0 for v in others)
    return TABLE.has(node.op, "normalization") and not TABLE.weights(node)


def _intersection(sets: Iterable[Ranks | None]) -> Ranks | None:
    known = [s for s in sets if s is not None]
    return frozenset.intersection(*known) if known else None


def _union(sets: Sequence[Ranks | None]) -> Ranks | None:
    known = [s for s in sets if s is not None]
    return frozenset().union(*known) if known and len(known) == len(sets) else None
