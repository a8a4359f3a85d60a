"""Cuts embedding tables to the ids in use; inputs keep their meaning.

    table[ids]   ->   table[kept][new_of_old[ids]]          new_of_old: i64[V], kept: ids, ascending

A dropped id reads the row of ``unknown``. All lookups by inputs that share a table are changed together,
those in subgraphs too. On kept ids, outputs are identical to the bit.

With ``logits=mask`` a tied head (h table^T) is cut to the columns of the same ids, and returns -inf for the
others. Otherwise heads stay whole.

    h table^T   ->   gather(pad(h table[kept]^T, -inf), new_of_old)

To renumber the ids of a model and its tokenizer, see :func:`tersor.trim_vocabulary`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from tersor.analysis.vocabulary import (
    Head,
    Vocabulary,
    checked_ids,
    choose_vocabulary,
    find_heads,
    new_of_old,
)
from tersor.errors import InvalidOption
from tersor.ir import Graph, Value
from tersor.pipeline import LOSSY, Context, Feeds, Pass, weight_bytes
from tersor.transforms.vocabulary import Cut, cut_heads, cut_tables, gather_rows, node_after


@dataclass(frozen=True)
class TrimVocabulary(Pass):
    """Options:

    ids: a file of the ids in use, integers separated by anything; instead of calibration.
    keep: further ids to keep.
    unknown: the id that replaces dropped ones, itself kept; -1: not set.
    input: the name of an input of the vocabulary to trim; by default the largest vocabulary.
    logits: ``keep``: heads stay whole. ``mask``: tied heads are cut, and dropped ids get -inf.
    """

    keeps = LOSSY
    comparable = False
    ids: str = ""
    keep: tuple[int, ...] = ()
    unknown: Annotated[int, Field(ge=-1)] = -1
    input: str = ""
    logits: Literal["keep", "mask"] = "keep"

    def run(self, graph: Graph, context: Context) -> None:
        vocabulary = choose_vocabulary(graph, self.input)
        if vocabulary is None:
            context.remark("no input indexes an embedding table")
            return
        kept = self._kept(vocabulary, context.calibration)
        if len(kept) == vocabulary.size:
            context.remark(f"all {len(kept)} ids are used: nothing to drop")
            return
        if self.unknown < 0:
            raise InvalidOption(
                f"{self.label}: {len(kept)} of {vocabulary.size} ids are used: say with unknown=ID "
                "which of them replaces the others"
            )
        before = weight_bytes(graph)
        remap = new_of_old(kept, vocabulary.size, self.unknown)
        heads = find_heads(graph, vocabulary)
        _renumber(graph, vocabulary, remap)
        cut: Cut = {}
        cut_tables(vocabulary, kept, cut)
        tied = [head for head in heads if head.tied] if self.logits == "mask" else []
        cut_heads(tied, kept, cut)
        for head in tied:
            _mask(head, kept, vocabulary.size)
        for head in heads:
            if head not in tied:
                context.skip(head.node, f"it keeps its {vocabulary.size} columns")
        context.rewrote()
        context.remark(
            layer=", ".join(v.name for v in vocabulary.inputs),
            method=f"{len(kept)} of {vocabulary.size} ids are kept",
            bytes=before - weight_bytes(graph),
        )

    def _kept(self, vocabulary: Vocabulary, calibration: Feeds) -> np.ndarray:
        """The old ids that stay, ascending.

        Raises:
            InvalidOption: there are none, or some are outside the vocabulary.
        """
        if self.ids:
            used = _read_ids(self.ids)
        elif calibration:
            used = np.zeros(0, np.int64)
            for feed in calibration:
                used = reduce(np.union1d, [feed[v.name] for v in vocabulary.inputs], used)
        else:
            raise InvalidOption(
                f"{self.label} needs calibration inputs, or a file of the ids in use (ids=FILE)"
            )
        more = [*self.keep, *([self.unknown] if self.unknown >= 0 else [])]
        checked_ids(used, vocabulary.size)
        return checked_ids(np.concatenate([used, np.asarray(more, np.int64)]), vocabulary.size)


def _read_ids(path: str) -> np.ndarray:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"ids: cannot read {path}: {error}") from None
    return np.array([int(number) for number in re.findall(r"-?\d+", text)], np.int64)


def _renumber(graph: Graph, vocabulary: Vocabulary, remap: np.ndarray) -> None:
    """Maps the ids of all lookups to new ones."""
    new: dict[Value, Value] = {}
    tables: dict[np.dtype, Value] = {}
    for item in vocabulary.lookups:
        ids = item.node.inputs[item.ids]
        assert ids is not None and item.node.graph is not None
        if ids not in new:
            kind = ids.tensor.dtype.numpy
            if kind not in tables:
                tables[kind] = graph.constant(remap.astype(kind), "new_ids")
            new[ids] = gather_rows(tables[kind], ids)
        item.node.graph.set_input(item.node, item.ids, new[ids])


def _mask(head: Head, kept: np.ndarray, size: int) -> None:
    """Expands the head's logits, now of the ids ``kept``, to all ids for its users: -inf for the others."""
    logits, graph = head.node.output, head.node.graph
    assert graph is not None
    readers, axis = list(logits.uses), (logits.tensor.rank or 0) - 1
    index = np.full(size, len(kept), np.int64)
    index[kept] = np.arange(len(kept))
    pads = np.array([0] * (2 * axis + 1) + [1], np.int64)
    lowest = np.array(-np.inf, logits.tensor.dtype.numpy)
    with graph.at(node_after(graph, head.node)):
        operands = [logits, graph.constant(pads, "pads"), graph.constant(lowest, "lowest")]
        padded = graph.emit("Pad", operands, scope=head.node.scope)
        whole = [padded, graph.constant(index, "columns")]
        result = graph.emit("Gather", whole, {"axis": axis}, scope=head.node.scope)
    for use in readers:
        graph.set_input(use.user, use.operand, result)
