"""Lowers graphs to a Relax module, a function for each, and the arrays that the functions take."""

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
from tersor.backends.tvm.lowering import Arrays, Lowering, Refused, Rule, Unavailable
from tersor.built import Weights
from tersor.errors import Unsupported, one_line
from tersor.ir import Graph, Node
from tersor.pipeline.report import Decoded

MAIN = "main"
MAX_REASONS = 8  # Nodes that an error names.


@dataclass(frozen=True)
class Lowered:
    """A Relax module.

    Attributes:
        arrays: which its functions take after the graph's inputs.
        derived: by index, the derivations of arrays from others when the model is loaded.
        parameters: for each function, the indices of its arrays, in order.
        decoded: constants that had to be decoded.
    """

    module: tvm.IRModule
    arrays: list[np.ndarray]
    derived: dict[int, Derivation]
    parameters: list[list[int]]
    decoded: list[Decoded]

    def weights(self, alignment: int) -> Weights | None:
        """The arrays to store, which are those that are not derived; None if there are none."""
        stored = tuple(a for index, a in enumerate(self.arrays) if index not in self.derived)
        return Weights(stored, alignment=alignment) if stored else None


def lower(graph: Graph, rules: dict[str, Rule]) -> tuple[tvm.IRModule, list[np.ndarray]]:
    """A Relax module with a function ``main``, and arrays: the function takes the graph's inputs, then the
    arrays, and returns the tuple of the graph's outputs.

    Raises:
        Unsupported: nodes that have no lowering, with the reason of each.
    """
    lowered = lower_all([graph], rules)
    return lowered.module, [lowered.arrays[index] for index in lowered.parameters[0]]


def lower_all(graphs: Sequence[Graph], rules: dict[str, Rule]) -> Lowered:
    """A Relax module with a function for each graph, named by :func:`function_name`.

    Raises:
        Unsupported: nodes that have no lowering, with the reason of each.
    """
    builder, arrays, kernels = relax.BlockBuilder(), Arrays(), dict[str, Any]()
    parameters = []
    for index, graph in enumerate(graphs):
        lowering = Lowering(builder, rules, arrays, kernels=kernels)
        _add_function(lowering, graph, function_name(index))
        parameters.append([array for _, array in lowering.parameters])
    module = builder.finalize()
    for index, graph in enumerate(graphs):
        name = function_name(index)
        module[name] = module[name].with_attr("num_input", len(graph.inputs))
    return Lowered(module, arrays.arrays, arrays.derived, parameters, [*arrays.decoded.values()])


def function_name(index: int) -> str:
    """The name of a module's function; the first is ``main``."""
    return f"{MAIN}_{index}" if index else MAIN


def _add_function(lowering: Lowering, graph: Graph, name: str) -> None:
    builder, reasons = lowering.builder, list[str]()
    inputs = []
    for value in graph.inputs:
        try:
            inputs.append(relax.Var(value.name, lowering.defining_type(value)))
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
    """Ends the open block if lowering fails, as TVM would otherwise print an error to stderr."""
    try:
        yield
    except Unsupported:
        builder._end_block()
        raise


def _try(lowering: Lowering, node: Node, reasons: list[str]) -> None:
    """Emits a node, or adds the reason why not to ``reasons``, so that later nodes are still tried."""
    try:
        lowering.node(node)
        return
    except Unavailable:
        pass
    except Refused as error:
        reasons.append(f"{node.label} ({node.op}): {one_line(error)}")
    except Exception as error:
        # An error of TVM's that no rule anticipated.
        raise Unsupported(
            f"{node.label} ({node.op}): TVM cannot lower it: {one_line(error, 300)}"
        ) from error
    lowering.refused.update(node.outputs)


def _unsupported(reasons: Sequence[str]) -> Unsupported:
    more = f"; and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
    return Unsupported(f"TVM has no lowering for {'; '.join(reasons[:MAX_REASONS])}{more}")
