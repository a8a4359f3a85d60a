"""Vocabularies of a graph: inputs of ids, the embedding tables they index, projections back onto the ids.

    x = table[ids]                 a lookup, in the graph or a subgraph of it
    logits = h table^T             a tied head: its weights are those of the table

If only ``kept`` of the V rows stay, ids are renumbered: ``new_of_old``[V] maps old ids to new ones, ``kept``
itself new ones to old ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tersor.analysis.match import dims, dtype, has_trait, operand, producer_if, rank
from tersor.errors import InvalidOption, suggest
from tersor.ir import Graph, Node, Value

_MOVES = {"Cast", "Expand", "Transpose"}  # Besides views.


@dataclass(frozen=True)
class Lookup:
    """A node that looks up rows of a table.

    Attributes:
        ids: index of the operand with the ids.
        table: index of the operand with the table.
        clipped: whether a Clip is between the graph input and the ids.
    """

    node: Node
    ids: int
    table: int
    clipped: bool


@dataclass(frozen=True)
class Vocabulary:
    """Graph inputs with ids of the same vocabulary.

    Attributes:
        size: V, the number of ids: rows of the smallest table.
        lookups: all that the inputs reach; tables are constants [V, width].
    """

    inputs: tuple[Value, ...]
    size: int
    lookups: tuple[Lookup, ...]

    @property
    def tables(self) -> list[Value]:
        """The distinct tables."""
        return list(dict.fromkeys(operand(item.node, item.table) for item in self.lookups))


@dataclass(frozen=True)
class Head:
    """A projection onto the vocabulary: a Linear or MatMul with weights [width, V].

    ``tied``: its weights equal those of one of the tables.
    """

    node: Node
    tied: bool


def walk_ids(value: Value) -> tuple[list[Lookup], list[Value]]:
    """The lookups that ``value`` reaches, and its aliases: itself first, then values with the same numbers
    in another shape or integer type."""
    lookups, aliases = [], [value]
    work, seen = [(value, False)], {value}
    while work:
        item, clipped = work.pop()
        for use in item.uses:
            node = use.user
            if isinstance(node, Graph):
                continue
            if node.op == "Gather" and use.operand == 1:
                lookups.append(Lookup(node, 1, 0, clipped))
            elif node.op == "tersor.EmbeddingLayerNormalization" and use.operand % 2 == 0:
                lookups.append(Lookup(node, use.operand, use.operand + 1, clipped))
            elif use.operand == 0 and (moves(node) or node.op == "Clip"):
                for result in (r for r in node.outputs if r not in seen):
                    seen.add(result)
                    work.append((result, clipped or node.op == "Clip"))
                    if not work[-1][1]:
                        aliases.append(result)
    return lookups, aliases


def moves(node: Node) -> bool:
    """Whether the node passes ids on unchanged, in another shape or integer type."""
    kind = dtype(node.output)
    whole = node.op in _MOVES or has_trait(node, "view")
    return whole and kind is not None and kind.is_integer


def find_vocabularies(graph: Graph) -> list[Vocabulary]:
    """All vocabularies, largest first. Inputs that share a table share a vocabulary."""
    lookups_of = {value: [i for i in walk_ids(value)[0] if _is_lookup(i)] for value in graph.inputs}
    import networkx as nx  # Slow to import, and `tersor --help` imports this module.

    shared: nx.Graph[Value] = nx.Graph()
    for value, lookups in lookups_of.items():
        shared.add_edges_from((value, operand(i.node, i.table)) for i in lookups)
    vocabularies = []
    for part in nx.connected_components(shared):
        inputs = tuple(v for v in graph.inputs if v in part)
        reached = tuple(dict.fromkeys(i for v in inputs for i in lookups_of[v]))
        sizes = [operand(i.node, i.table).tensor.shape[0] for i in reached]
        vocabularies.append(Vocabulary(inputs, min(sizes), reached))
    return sorted(vocabularies, key=lambda v: -v.size)


def choose_vocabulary(graph: Graph, input: str) -> Vocabulary | None:
    """The vocabulary of the input ``input``, or the largest if that is empty; None if there is none.

    Raises:
        InvalidOption: no input of that name, or it indexes no table.
    """
    vocabularies = find_vocabularies(graph)
    if not input:
        return vocabularies[0] if vocabularies else None
    for vocabulary in vocabularies:
        if any(v.name == input for v in vocabulary.inputs):
            return vocabulary
    names = [v.name for v in graph.inputs]
    if input not in names:
        raise InvalidOption(
            f"no input {input!r}{suggest(input, names)}; there are {', '.join(names)}"
        )
    raise InvalidOption(f"input {input!r} does not index an embedding table")


def find_heads(graph: Graph, vocabulary: Vocabulary) -> list[Head]:
    """Projections onto the vocabulary: tied ones, and untied ones onto V columns whose results reach the
    outputs by elementwise ops alone."""
    tables = [t for t in vocabulary.tables if t.tensor.shape[0] == vocabulary.size]
    heads = []
    for node in graph.walk():
        weight = node.input(1)
        if node.op not in ("tersor.Linear", "MatMul") or weight is None or rank(weight) != 2:
            continue
        if dims(weight)[1] != vocabulary.size:  # type: ignore[index]
            continue
        if any(_is_transposed(weight, table) for table in tables):
            heads.append(Head(node, True))
        elif weight.is_constant and logits_flow(node.output) is not None:
            heads.append(Head(node, False))
    return heads


def logits_flow(logits: Value) -> list[Node] | None:
    """The elementwise nodes between ``logits`` and the outputs; None where another op reads them, or no
    output does."""
    flow: list[Node] = []
    work, returned = [logits], False
    if logits.graph.outer is not None:
        return None
    while work:
        value = work.pop()
        returned = returned or value.is_output
        for node in value.users:
            if not has_trait(node, "elementwise") or not _one_of_logits(node, value):
                return None
            flow.append(node)
            work += node.outputs
    return flow if returned else None


def _one_of_logits(node: Node, logits: Value) -> bool:
    """Whether all other operands are constants that broadcast along the last axis."""
    last = dims(logits)[-1]  # type: ignore[index]
    others = [v for v in node.inputs if v is not None and v is not logits]
    return all(v.is_constant and (dims(v) or (1,))[-1] in (1, last) for v in others)


def _is_lookup(item: Lookup) -> bool:
    table = item.node.input(item.table)
    return (
        table is not None
        and table.is_constant
        and rank(table) == 2
        and item.node.attrs.get("axis", 0) == 0
        and table.tensor.dtype.is_float
    )


def _is_transposed(weight: Value, table: Value) -> bool:
    if (node := producer_if(weight, "Transpose")) is not None:
        return node.inputs[0] is table
    if not weight.is_constant or weight.tensor.shape != table.tensor.shape[::-1]:
        return False
    return weight.tensor.dtype is table.tensor.dtype and np.array_equal(
        weight.numpy().T, table.numpy(), equal_nan=True
    )


# -- renumbering -----------------------------------------------------------------------------------


def checked_ids(ids: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """``ids`` as i64, unique and ascending; negative ones count from the end.

    Raises:
        InvalidOption: an id outside the vocabulary, or no ids.
    """
    unique = np.unique(np.asarray(ids, np.int64))
    if not len(unique):
        raise InvalidOption("no ids are used: the vocabulary would be empty")
    if unique[0] < -size or unique[-1] >= size:
        outside = unique[0] if unique[0] < -size else unique[-1]
        raise InvalidOption(f"id {outside} is outside the vocabulary of {size}")
    return np.unique(unique % size)


def new_of_old(kept: np.ndarray, size: int, unknown: int) -> np.ndarray:
    """i64[size]: the new id of each old one. Ids that are not ``kept`` map to the new id of ``unknown``,
    which is."""
    mapping = np.full(size, int(np.searchsorted(kept, unknown)), np.int64)
    mapping[kept] = np.arange(len(kept))
    return mapping
