"""Which layers a pass is for: the options that say so, and why others stay.

A pass over layers names its kind, what speaks against a layer, and what it does:

    @dataclass(frozen=True)
    class RoundWeights(LayerPass):
        '''Weights become whole numbers.'''

        keeps = LOSSY

        def against(self, layer: WeightedLayer) -> str:
            return layer.encoded or layer.tied

        def run(self, graph: Graph, context: Context) -> None:
            for layer in self.layers(graph, context):
                graph.set_encoding(layer.weight, Dense(layer.weight.numpy().round()))
                context.rewrote()
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from tersor.analysis.layers import Reader, WeightedLayer, by_weight, weight_readers
from tersor.errors import InvalidOption, suggest
from tersor.ir import Graph
from tersor.pipeline import Context, Pass

SHOWN = 5  # Scopes that a message names.


class Scoped(Protocol):
    """A node, or what else has a scope."""

    @property
    def scope(self) -> str: ...

    @property
    def label(self) -> str: ...


S = TypeVar("S", bound=Scoped)


@dataclass(frozen=True, kw_only=True)
class Selection(Pass):
    """Options of every pass that chooses:

    scopes: patterns of scopes (``encoder.layer.0.*``, as ``fnmatch`` has them) that it is for; none: all.
    ignored_scopes: patterns of scopes that stay as they are.
    """

    scopes: tuple[str, ...] = ()
    ignored_scopes: tuple[str, ...] = ()

    def chosen(self, graph: Graph, candidates: Iterable[S], context: Context) -> list[S]:
        """Those of ``candidates``, which are in ``graph``, that the options leave.

        Raises:
            InvalidOption: a pattern fits neither one of them nor a layer of another kind: all passes of a
                recipe can be given the same patterns.
        """
        every = list(candidates)
        if self.scopes or self.ignored_scopes:
            self._check([*every, *weight_readers(graph)])
        kept = []
        for one in every:
            if self.scopes and not _fits(one.scope, self.scopes):
                continue  # Not asked for: nothing to explain.
            if _fits(one.scope, self.ignored_scopes):
                context.skip(one, "its scope is ignored by option")
            else:
                kept.append(one)
        return kept

    def _check(self, known: Sequence[Scoped]) -> None:
        scopes = list(dict.fromkeys(one.scope for one in known))
        for pattern in (*self.scopes, *self.ignored_scopes):
            if not any(fnmatchcase(scope, pattern) for scope in scopes):
                raise _fits_nothing(pattern, scopes)


@dataclass(frozen=True, kw_only=True)
class LayerPass(Selection):
    """A pass over weighted layers. Its options, besides its own and those of a selection:

    min_elements: weights of fewer elements stay as they are.
    """

    min_elements: int = 0

    def wants(self, reader: Reader) -> bool:
        """Whether a weight that is read so is of the pass's kind. What is not, no report mentions."""
        return reader.is_float_constant and not reader.form.looked_up

    def against(self, layer: WeightedLayer) -> str:
        """Why a layer of its kind stays as it is; empty if it need not."""
        return ""

    def layers(self, graph: Graph, context: Context) -> list[WeightedLayer]:
        """The layers of ``graph`` that the pass is to change, in order; the report says why others stay.

        Raises:
            InvalidOption: a pattern of scopes fits nothing.
        """
        readers = [reader for reader in weight_readers(graph) if self.wants(reader)]
        found = []
        for layer in by_weight(self.chosen(graph, readers, context)):
            if reason := layer.fewer_than(self.min_elements) or self.against(layer):
                context.skip(layer.node, reason)
            else:
                found.append(layer)
        return found


@dataclass(frozen=True, kw_only=True)
class TablePass(LayerPass):
    """A pass over tables that nothing is done with but that rows of them are looked up."""

    def wants(self, reader: Reader) -> bool:
        return reader.is_float_constant and reader.form.looked_up

    def against(self, layer: WeightedLayer) -> str:
        return layer.tied or layer.shared or layer.not_finite


def _fits(scope: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(scope, pattern) for pattern in patterns)


def _fits_nothing(pattern: str, scopes: Sequence[str]) -> InvalidOption:
    named = [scope for scope in scopes if scope]
    if named:
        more = ", …" if len(named) > SHOWN else ""
        there = f"there are {', '.join(named[:SHOWN])}{more}"
    else:
        there = "no layer has a scope" if scopes else "there is no layer"
    return InvalidOption(f"no layer's scope fits {pattern!r}{suggest(pattern, named)}; {there}")
