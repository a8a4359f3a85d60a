"""Every rule of lowering on the op table's samples, against ONNX Runtime; and where ops have corners:
other types than float32, no elements, numbers that a machine traps on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from contract import (
    assert_agrees,
    by_reference,
    by_size,
    each_its_own,
    run_in_onnx,
    static,
)

from tersor.errors import Unsupported
from tersor.ir import Graph, TensorType
from tersor.ops import TABLE, Sample
from tersor.ops.evaluate import evaluate
from tersor.ops.samples import Case, Dims, cases, feeds, one_node
from tersor.target import Target

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends.tvm.lowering import MAIN, lower  # noqa: E402
from tersor.backends.tvm.ops import RULES  # noqa: E402
from tersor.backends.tvm.pipeline import compile_module, tvm_target  # noqa: E402

NUMBERS = "only the numbers tell how many elements"
# Ops, or samples of theirs, that are refused, and a part of the reason.
REFUSED = {
    "NonZero": NUMBERS,
    "Unique": NUMBERS,
    "Compress-3": "which elements it takes is known at run time only",
}

CASES = cases()
HOST = tvm_target(Target.host().features, cores=1)


def run(graph: Graph, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The graph's outputs, lowered and compiled for this machine."""
    module, parameters = lower(graph, RULES)
    machine = tvm.relax.VirtualMachine(compile_module(module, HOST), tvm.cpu())
    given = [inputs[value.name] for value in graph.inputs] + parameters
    made = machine[MAIN](*(tvm.runtime.tensor(np.array(a, order="C")) for a in given))
    return [tensor.numpy() for tensor in made]


@cache
def _wanted(name: str) -> list[np.ndarray]:
    case = next(c for c in CASES if c.name == name)
    graph = one_node(case.row.op, case.sample)
    made = run_in_onnx(graph, feeds(case.sample), by_reference(case))
    return [np.asarray(array) for array in made]


def _reason(case: Case, graph: Graph) -> str | None:
    """Why the node must be refused: the test's list, or sizes that the IR does not know."""
    listed = REFUSED.get(case.name) or REFUSED.get(case.row.op)
    if listed is not None:
        return listed
    types = [v.type for v in graph.outputs if isinstance(v.type, TensorType)]
    unknown = any(t.dims is None or None in t.dims for t in types)
    return "known at run time only" if unknown else None


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
@pytest.mark.parametrize("dims", [static, by_size, each_its_own])
def test_a_lowered_node_agrees_with_the_runtime(case: Case, dims: Dims) -> None:
    graph = one_node(case.row.op, case.sample, dims)
    reason = _reason(case, graph)
    if reason is not None:
        with pytest.raises(Unsupported, match=reason):
            lower(graph, RULES)
        return
    got = run(graph, feeds(case.sample))
    for mine, theirs in zip(got, _wanted(case.name), strict=True):
        assert_agrees(mine, theirs, case.sample.tolerance)
