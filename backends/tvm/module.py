"""A Relax module: a function for each graph, and the arrays that its functions are passed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tersor.backends.tvm import ordered  # noqa: F401
from tersor.backends.tvm.derive import Derivation
from tersor.backends.tvm.lowering import Arrays, Lowering, NotMade, Refused, Rule
from tersor.built import Weights
from tersor.errors import Unsupported, one_line
from tersor.ir import Graph, Node
from tersor.pipeline.report import Decoded

MAIN = "main"
MOST_REASONS = 8  # Nodes that an error names.


@dataclass(frozen=True)
class Lowered:
    """A Relax module.

    Attributes:
        arrays: that its functions are passed behind the graph's inputs.
        derived: places of those that are computed of others when the model is loaded.
        decoded: constants that no kernel reads as they are stored.
        taken: for each function, which of them, in its order.
    """

    module: tvm.IRModule
    arrays: list[np.ndarray]
    derived: dict[int, Derivation]
    taken: list[list[int]]
    decoded: list[Decoded]

    def weights(self, alignment: int) -> Weights | None:
        """What the file stores: the arrays that are not derived. None where there are none."""
        stored = tuple(a for place, a in enumerate(self.arrays) if place not in self.derived)
        return Weights(stored, alignment=alignment) if stored else None


def lower(graph: Graph, rules: dict[str, Rule]) -> tuple[tvm.IRModule, list[np.ndarray]]:
    """A Relax module with a function ``main`` of the graph's inputs, then of the arrays that are
    returned with it; it gives the tuple of the graph's outputs.

    Raises:
        Unsupported: nodes that have no lowering, with the reason of each.
    """
    lowered = lower_all([graph], rules)
    return lowered.module, [lowered.arrays[place] for place in lowered.taken[0]]


def lower_all(graphs: Sequence[Graph], rules: dict[str, Rule]) -> Lowered:
    """A Relax module with a function for each graph, called as :func:`function_name` says.

    Raises:
        Unsupported: nodes that have no lowering, with the reason of each.
    """
    builder, arrays, kernels = relax.BlockBuilder(), Arrays(), dict[str, Any]()
    taken = []
    for place, graph in enumerate(graphs):
        lowering = Lowering(builder, rules, arrays, kernels=kernels)
        _add_function(lowering, graph, function_name(place))
        taken.append([array for _, array in lowering.parameters])
    module = builder.finalize()
    for place, graph in enumerate(graphs):
        name = function_name(place)
        module[name] = module[name].with_attr("num_input", len(graph.inputs))
    return Lowered(module, arrays.held, arrays.derived, taken, [*arrays.decoded.values()])


def function_name(place: int) -> str:
    """The name of a module's function: of the first one ``main``."""
    return f"{MAIN}_{place}" if place else MAIN


def _add_function(lowering: Lowering, graph: Graph, name: str) -> None:
    builder, reasons = lowering.builder, list[str]()
    inputs = []
    for value in graph.inputs:
        try:
            inputs.append(relax.Var(value.name, lowering.telling_type(value)))
        except Refused as error:
            raise Unsupported(f"input {value.name!r}: TVM does not take {error}") from None
        lowering.exprs[value] = inputs[-1]
    with builder.function(name), _closed(builder):
        with builder.dataflow():
            for node in graph.nodes:
                _try(lowering, node, reasons)
            if reasons:
                raise _unsupported(reasons)
            results = builder.emit_output(relax.Tuple([lowering[v] for v in graph.outputs]))
        parameters = [var for var, _ in lowering.parameters]
        builder.emit_func_output(results, params=[*inputs, *parameters])


@contextmanager
def _closed(builder: relax.BlockBuilder) -> Iterator[None]:
    """Where lowering ends early, ends the open block too: TVM would complain of it on stderr."""
    try:
        yield
    except Unsupported:
        builder._end_block()
        raise


def _try(lowering: Lowering, node: Node, reasons: list[str]) -> None:
    """Emits a node; what refuses it is noted, and the others are tried all the same."""
    try:
        lowering.node(node)
        return
    except NotMade:
        pass
    except Refused as error:
        reasons.append(f"{node.label} ({node.op}): {one_line(error)}")
    except Exception as error:
        # TVM's own errors: what it refuses that no rule foresaw.
        raise Unsupported(
            f"{node.label} ({node.op}): TVM refuses it: {one_line(error, 300)}"
        ) from error
    lowering.not_made.update(node.outputs)


def _unsupported(reasons: Sequence[str]) -> Unsupported:
    more = f"; and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
    return Unsupported(f"TVM has no lowering for {'; '.join(reasons[:MOST_REASONS])}{more}")
