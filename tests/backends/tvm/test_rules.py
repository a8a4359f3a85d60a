"""Every rule of lowering on the op table's samples, against ONNX Runtime; in other types of floats,
against the table's evaluation."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
from contract import (
    assert_agrees,
    by_reference,
    by_size,
    each_its_own,
    run_in_onnx,
    run_in_tvm,
    static,
)

from tersor.errors import Unsupported
from tersor.ir import Graph, TensorType
from tersor.ops import IR_OPSET, TABLE, Sample
from tersor.ops.evaluate import evaluate
from tersor.ops.samples import Case, Dims, cases, feeds, one_node

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends.tvm.lowering import lower
from tersor.backends.tvm.ops import RULES

NUMBERS = "only the numbers tell how many elements"
# Ops, or samples of theirs, that are refused, and a part of the reason.
REFUSED = {
    "NonZero": NUMBERS,
    "Unique": NUMBERS,
    "Compress-3": "which elements it takes is known at run time only",
}

# Rows without a rule: their operands or results are no tensors.
NO_RULE = {
    "SequenceConstruct", "SequenceEmpty", "SequenceAt", "SequenceInsert", "SequenceErase",
    "SequenceLength", "ConcatFromSequence", "SplitToSequence", "Optional", "OptionalGetElement",
    "OptionalHasElement",
}  # fmt: skip

CASES = cases()


@cache
def _wanted(name: str) -> list[np.ndarray]:
    case = next(c for c in CASES if c.name == name)
    graph = one_node(case.row.op, case.sample)
    made = run_in_onnx(graph, feeds(case.sample), by_reference(case))
    return [np.asarray(array) for array in made]


def _is_refused(case: Case) -> bool:
    return case.name in REFUSED or case.row.op in REFUSED


def _reason(case: Case, graph: Graph) -> str | None:
    """Why the node must be refused: the test's list, or sizes that the IR does not know."""
    if _is_refused(case):
        return REFUSED.get(case.name) or REFUSED[case.row.op]
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
    got = run_in_tvm(graph, feeds(case.sample))
    for mine, theirs in zip(got, _wanted(case.name), strict=True):
        assert_agrees(mine, theirs, case.sample.tolerance)


def test_refusals_name_rows() -> None:
    known = {row.op for row in TABLE} | {case.name for case in CASES}
    assert [name for name in REFUSED if name not in known] == []
    assert [row.op for row in TABLE if (row.op in RULES) is (row.op in NO_RULE)] == []


# -- other types -----------------------------------------------------------------------------------


def _takes(case: Case, name: str) -> bool:
    """Whether ONNX allows elements of that type where the sample has float32."""
    given = [i for i, a in enumerate(case.sample.inputs) if a is not None and a.dtype == np.float32]
    if not given or not onnx.defs.has(case.row.op):
        return False
    schema = onnx.defs.get_schema(case.row.op, IR_OPSET)
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    formal = [schema.inputs[min(i, len(schema.inputs) - 1)].type_str for i in given]
    return all(f"tensor({name})" in allowed.get(text, [text]) for text in formal)


def _as(sample: Sample, dtype: type) -> Sample:
    """The sample with other floats."""
    arrays = [
        a.astype(dtype) if a is not None and a.dtype.kind == "f" else a for a in sample.inputs
    ]
    return replace(sample, inputs=arrays)


def _judged(name: str) -> list[Case]:
    return [c for c in CASES if _takes(c, name) and not _is_refused(c)]


@pytest.mark.parametrize("case", _judged("double"), ids=lambda c: c.name)
def test_doubles_keep_their_accuracy(case: Case) -> None:
    """Of libm, and of sums of some numbers."""
    sample = _as(case.sample, np.float64)
    graph = one_node(case.row.op, sample)
    want = evaluate(graph, feeds(sample)).values()
    for mine, theirs in zip(run_in_tvm(graph, feeds(sample)), want, strict=True):
        assert_agrees(mine, theirs, 1e-11)


@pytest.mark.parametrize("case", _judged("float16"), ids=lambda c: c.name)
def test_halves_are_computed_in_single_precision(case: Case) -> None:
    """What float32 gives for the same numbers, rounded: half a unit in the last of 11 bits, and as much
    for results that are rounded on the way."""
    sample = _as(case.sample, np.float16)
    got = run_in_tvm(one_node(case.row.op, sample), feeds(sample))
    wide = _as(sample, np.float32)
    want = evaluate(one_node(case.row.op, wide), feeds(wide)).values()
    for mine, theirs in zip(got, want, strict=True):
        assert_agrees(mine, theirs.astype(mine.dtype), 2**-10)
