"""Selecting the layers that a pass changes: options, and the reasons that exclude a layer.

A pass over layers defines the kind of weight it wants, its reasons against a layer, and its rewrite:

    @dataclass(frozen=True)
    class RoundWeights(LayerPass):
        '''Rounds weights to whole numbers.'''

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

SHOWN = 5  # Scopes listed in a message.


class Scoped(Protocol):
    """A node or a reader of a weight."""

    @property
    def scope(self) -> str: ...

    @property
    def label(self) -> str: ...


S = TypeVar("S", bound=Scoped)


@dataclass(frozen=True, kw_only=True)
class Selection(Pass):
    """Options of every pass that selects nodes:

    scopes: ``fnmatch`` patterns of the scopes to change (``encoder.layer.0.*``); none: all.
    ignored_scopes: patterns of the scopes to leave alone.
    """

    scopes: tuple[str, ...] = ()
    ignored_scopes: tuple[str, ...] = ()

    def chosen(self, graph: Graph, candidates: Iterable[S], context: Context) -> list[S]:
        """The ``candidates`` that the options select.

        Raises:
            InvalidOption: a pattern matches neither a candidate nor any weighted layer of ``graph``. (Layers
                of other kinds count, so that all passes of a recipe can share patterns.)
        """
        every = list(candidates)
        if self.scopes or self.ignored_scopes:
            self._check([*every, *weight_readers(graph)])
        kept = []
        for one in every:
            if self.scopes and not _matches(one.scope, self.scopes):
                continue  # Not requested, so not reported.
            if _matches(one.scope, self.ignored_scopes):
                context.skip(one, "its scope is in ignored_scopes")
            else:
                kept.append(one)
        return kept

    def _check(self, known: Sequence[Scoped]) -> None:
        scopes = list(dict.fromkeys(one.scope for one in known))
        for pattern in (*self.scopes, *self.ignored_scopes):
            if not any(fnmatchcase(scope, pattern) for scope in scopes):
                raise _no_match(pattern, scopes)


@dataclass(frozen=True, kw_only=True)
class LayerPass(Selection):
    """A pass over weighted layers. Options it adds to those of a selection:

    min_elements: smaller weights are left alone.
    """

    min_elements: int = 0

    def wants(self, reader: Reader) -> bool:
        """Whether the pass is about weights used like this. Others are not reported."""
        return reader.is_float_constant and not reader.form.looked_up

    def against(self, layer: WeightedLayer) -> str:
        """Why the pass has to leave a layer alone; empty if it need not."""
        return ""

    def layers(self, graph: Graph, context: Context) -> list[WeightedLayer]:
        """The layers to change, in graph order; the report says why others are left alone.

        Raises:
            InvalidOption: a scope pattern matches nothing.
        """
        readers = [reader for reader in weight_readers(graph) if self.wants(reader)]
        layers = []
        for layer in by_weight(self.chosen(graph, readers, context)):
            if reason := layer.fewer_than(self.min_elements) or self.against(layer):
                context.skip(layer.node, reason)
            else:
                layers.append(layer)
        return layers


@dataclass(frozen=True, kw_only=True)
class TablePass(LayerPass):
    """A pass over tables that are only used for lookups."""

    def wants(self, reader: Reader) -> bool:
        return reader.is_float_constant and reader.form.looked_up

    def against(self, layer: WeightedLayer) -> str:
        return layer.tied or layer.shared or layer.not_finite


def _matches(scope: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(scope, pattern) for pattern in patterns)


def _no_match(pattern: str, scopes: Sequence[str]) -> InvalidOption:
    named = [scope for scope in scopes if scope]
    if named:
        more = ", …" if len(named) > SHOWN else ""
        known = f"there are {', '.join(named[:SHOWN])}{more}"
    else:
        known = "no layer has a scope" if scopes else "there is no layer"
    return InvalidOption(f"no layer's scope matches {pattern!r}{suggest(pattern, named)}; {known}")
