"""Every rule of lowering on the op table's samples, against ONNX Runtime; in other types of floats,
against the table's evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from tersor.ir import Graph, Sym, TensorType, Value
from tersor.ops import IR_OPSET, TABLE, Sample
from tersor.ops.evaluate import evaluate
from tersor.ops.samples import Case, Dims, cases, feeds, one_node, put

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends.tvm import contrib
from tersor.backends.tvm.module import lower
from tersor.backends.tvm.ops import RULES

# Ops, or samples of theirs, that are refused, and a part of the reason.
REFUSED = {
    # Sizes have no names here that a run could tell: test_run_time_sizes.py.
    "NonZero": "known at run time only",
    "Unique": "known at run time only",
    "Compress-3": "known at run time only",
}

# Samples that are refused where their sizes are symbols.
REFUSED_SYMBOLIC = {
    "ScatterND-1": "the length of the index tuples is known at run time only",
}

# Samples whose results in double precision are no better than that, and why.
COARSE = {"Resize-7": (1e-5, "its positions are computed as float32, by each its own way")}

CASES = {case.name: case for case in cases()}
Got = Callable[[str, Case], list[np.ndarray]]
BATCH = 40  # Nodes that are compiled together: most of the time goes to a module, not to its nodes.


@dataclass(frozen=True)
class Variant:
    """How samples are run: with which dims, and in another type of floats than float32."""

    dims: Dims
    floats: type = np.float32

    def sample(self, case: Case) -> Sample:
        arrays = [
            a.astype(self.floats) if a is not None and a.dtype == np.float32 else a
            for a in case.sample.inputs
        ]
        return replace(case.sample, inputs=arrays)

    def graph(self, case: Case) -> Graph:
        return one_node(case.row.op, self.sample(case), self.dims)

    def takes(self, case: Case) -> bool:
        """Whether the sample has float32, and ONNX allows these floats there."""
        given = [
            i for i, a in enumerate(case.sample.inputs) if a is not None and a.dtype == np.float32
        ]
        if not given or not onnx.defs.has(case.row.op):
            return False
        schema = onnx.defs.get_schema(case.row.op, IR_OPSET)
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        formal = [schema.inputs[min(i, len(schema.inputs) - 1)].type_str for i in given]
        name = {np.float64: "tensor(double)", np.float16: "tensor(float16)"}[self.floats]
        return all(name in allowed.get(text, [text]) for text in formal)


VARIANTS = {
    "static": Variant(static),
    "by-size": Variant(by_size),
    "each-its-own": Variant(each_its_own),
    "double": Variant(static, np.float64),
    "half": Variant(static, np.float16),
}


def _reason(case: Case, graph: Graph) -> str | None:
    """Why the node must be refused: the test's list, or sizes that the IR does not know."""
    listed = REFUSED.get(case.name) or REFUSED.get(case.row.op)
    symbolic = any(isinstance(d, Sym) for v in graph.inputs for d in v.tensor.dims or ())
    if symbolic and case.name in REFUSED_SYMBOLIC:
        return REFUSED_SYMBOLIC[case.name]
    types = [v.type for v in graph.outputs if isinstance(v.type, TensorType)]
    unknown = any(t.dims is None or None in t.dims for t in types)
    return listed or ("known at run time only" if unknown else None)


@cache
def _lowered(name: str) -> list[Case]:
    """The cases that a variant lowers."""
    variant = VARIANTS[name]
    chosen = [c for c in CASES.values() if variant.floats is np.float32 or variant.takes(c)]
    return [c for c in chosen if _reason(c, variant.graph(c)) is None]


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> dict[str, list[Case]]:
    """Of each variant, the cases that it lowers and that this run of pytest asks for."""
    asked: dict[str, set[str]] = {name: set() for name in VARIANTS}
    for item in request.session.items:
        if (
            item.path == request.path
            and isinstance(item, pytest.Function)
            and hasattr(item, "callspec")
        ):
            asked[item.callspec.params["variant"]].add(item.callspec.params["name"])
    return {v: [c for c in _lowered(v) if c.name in names] for v, names in asked.items()}


def _together(name: str, batch: Sequence[Case]) -> dict[str, list[np.ndarray]]:
    """Results of a batch of cases by their names; none where they do not compile together."""
    variant, graph = VARIANTS[name], TABLE.graph()
    inputs: dict[str, np.ndarray] = {}
    ends: dict[str, int] = {}
    outputs: list[Value] = []
    for i, case in enumerate(batch):
        sample = variant.sample(case)
        outputs += put(graph, case.row.op, sample, variant.dims, f"n{i}_")
        inputs |= {f"n{i}_{key}": array for key, array in feeds(sample).items()}
        ends[case.name] = len(outputs)
    graph.set_outputs(outputs, [v.name for v in outputs])
    try:
        made = run_in_tvm(graph, inputs)
    except Exception:
        return {}
    starts = [0, *ends.values()]
    return {n: made[a:b] for (n, b), a in zip(ends.items(), starts, strict=False)}


@pytest.fixture(scope="module")
def got(chosen: dict[str, list[Case]]) -> Callable[[str, Case], list[np.ndarray]]:
    """What a case gives; on its own where its batch fails, so that only the guilty does."""

    @cache
    def made(name: str, batch: int) -> dict[str, list[np.ndarray]]:
        return _together(name, chosen[name][batch * BATCH : (batch + 1) * BATCH])

    def run(name: str, case: Case) -> list[np.ndarray]:
        held = made(name, chosen[name].index(case) // BATCH)
        if case.name in held:
            return held[case.name]
        return run_in_tvm(VARIANTS[name].graph(case), feeds(VARIANTS[name].sample(case)))

    return run


@cache
def _wanted(name: str) -> list[np.ndarray]:
    case = CASES[name]
    graph = one_node(case.row.op, case.sample)
    made = run_in_onnx(graph, feeds(case.sample), by_reference(case))
    return [np.asarray(array) for array in made]


some = pytest.mark.sample(4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "variant",
    [pytest.param("static", marks=some), "by-size", pytest.param("each-its-own", marks=some)],
)
def test_a_lowered_node_agrees_with_the_runtime(name: str, variant: str, got: Got) -> None:
    case = CASES[name]
    graph = VARIANTS[variant].graph(case)
    reason = _reason(case, graph)
    if reason is not None:
        with pytest.raises(Unsupported, match=reason):
            lower(graph, RULES)
        return
    for mine, theirs in zip(got(variant, case), _wanted(name), strict=True):
        assert_agrees(mine, theirs, case.sample.tolerance)


def test_every_row_has_a_rule_and_exceptions_name_rows() -> None:
    known = {row.op for row in TABLE} | CASES.keys()
    assert [name for name in (*REFUSED, *REFUSED_SYMBOLIC, *COARSE) if name not in known] == []
    assert [row.op for row in TABLE if row.op not in RULES and row.op not in contrib.RULES] == []


@some
@pytest.mark.parametrize("variant", ["double"])
@pytest.mark.parametrize("name", [c.name for c in _lowered("double")])
def test_doubles_keep_their_accuracy(name: str, variant: str, got: Got) -> None:
    """Of libm, and of sums of some numbers."""
    case = CASES[name]
    tolerance, _ = COARSE.get(case.name, (1e-11, ""))
    sample = VARIANTS["double"].sample(case)
    want = evaluate(one_node(case.row.op, sample), feeds(sample)).values()
    for mine, theirs in zip(got(variant, case), want, strict=True):
        assert_agrees(mine, theirs, tolerance)


@some
@pytest.mark.parametrize("variant", ["half"])
@pytest.mark.parametrize("name", [c.name for c in _lowered("half")])
def test_halves_are_computed_in_single_precision(name: str, variant: str, got: Got) -> None:
    """What float32 gives for the same numbers, rounded: half a unit in the last of 11 bits, and as much
    for results that are rounded on the way."""
    case = CASES[name]
    halves = VARIANTS["half"].sample(case)
    wide = replace(halves, inputs=[
        a.astype(np.float32) if a is not None and a.dtype == np.float16 else a
        for a in halves.inputs
    ])  # fmt: skip
    want = evaluate(one_node(case.row.op, wide), feeds(wide)).values()
    for mine, theirs in zip(got(variant, case), want, strict=True):
        assert_agrees(mine, theirs.astype(mine.dtype), 2**-10)
