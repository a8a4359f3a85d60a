"""What a row of the op table promises, held on the row's own samples.

A new row needs no test of its own: its samples are found here, and its evaluation, types, contents and
text form are held against ONNX Runtime (ties: see test_ties.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from contract import (
    REFERENCE,
    assert_agrees,
    batch,
    by_reference,
    by_size,
    each_its_own,
    run_in_onnx,
    static,
)

from tersor.ir import (
    Dim,
    DType,
    Graph,
    Sym,
    TensorType,
    parse,
    print_graph,
    symbol,
    verify,
    weights_of,
)
from tersor.ir.dims import evaluate as dim_at
from tersor.ops import TABLE, OpDef, Sample, contents_of
from tersor.ops.evaluate import evaluate
from tersor.ops.samples import Case, Dims, cases, feeds, one_node

# Rows without torch, cost or samples, and why.
SEQUENCES = "its operands or results are sequences or optionals: tests/ops/test_sequence.py"
BODIES = "its attributes are graphs: tests/ops/test_control.py"
RANDOM = "it draws other numbers than a runtime does: tests/ops/test_random.py"
STEPWISE = "ONNX Runtime's own, which only it computes: tests/backends/tvm/test_contrib.py"
EXCEPTIONS: dict[str, tuple[frozenset[str], str]] = {
    "Unique": (frozenset({"cost"}), "sorting takes no fixed number of operations an element"),
    **dict.fromkeys(
        ("SequenceConstruct", "SequenceEmpty", "SequenceAt", "SequenceInsert", "SequenceErase",
         "SequenceLength", "ConcatFromSequence", "SplitToSequence", "Optional",
         "OptionalGetElement", "OptionalHasElement"),
        (frozenset({"samples"}), SEQUENCES),
    ),
    **dict.fromkeys(("If", "Loop", "Scan"), (frozenset({"samples"}), BODIES)),
    **dict.fromkeys(
        ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
         "Multinomial"),
        (frozenset({"samples"}), RANDOM),
    ),
    "com.microsoft.DynamicQuantizeLSTM": (frozenset({"samples", "torch"}), STEPWISE),
    "com.microsoft.DynamicQuantizeMatMul": (frozenset({"samples", "torch"}), STEPWISE),
    "com.microsoft.MatMulIntegerToFloat": (frozenset({"samples", "torch"}), STEPWISE),
}  # fmt: skip

# Samples whose numbers break what inference takes for granted of symbolic sizes.
ASSUMED = {
    "Slice-2": "a symbolic end in an axis of a fixed size lies within it",
    "Range-4": "a symbolic limit is not below the start",
}


CASES = cases()


def over(chosen: Sequence[Case]) -> pytest.MarkDecorator:
    ids = [f"{c.name}{'-reference' if by_reference(c) else ''}" for c in chosen]
    return pytest.mark.parametrize("case", chosen, ids=ids)


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", list(TABLE), ids=lambda row: row.op)
def test_a_row_says_all_that_it_must(row: OpDef) -> None:
    excused, reason = EXCEPTIONS.get(row.op, (frozenset(), ""))
    missing = {f for f in ("torch", "cost", "samples") if getattr(row, f) is None}
    assert missing == excused, reason
    if row.op.startswith("tersor."):
        assert row.doc and row.inputs and row.infer
    else:
        assert row.since > 0


def test_exceptions_name_rows() -> None:
    known = {row.op for row in TABLE} | {case.name for case in CASES}
    assert [name for name in (*EXCEPTIONS, *REFERENCE, *ASSUMED) if name not in known] == []


# -- evaluation ------------------------------------------------------------------------------------


@over(CASES)
def test_torch_evaluation_agrees_with_the_runtime(case: Case) -> None:
    graph = one_node(case.row.op, case.sample)
    inputs = feeds(case.sample)
    got = evaluate(graph, inputs)
    want = run_in_onnx(graph, inputs, by_reference(case))
    assert len(got) == len(want)
    for mine, theirs in zip(got.values(), want, strict=True):
        assert_agrees(mine, np.asarray(theirs), case.sample.tolerance)


@over([c for c in CASES if by_reference(c)])
def test_the_runtime_still_refuses_what_the_reference_judges(case: Case) -> None:
    graph = one_node(case.row.op, case.sample)
    reason = REFERENCE.get(case.name) or REFERENCE[case.row.op]
    with pytest.raises(Exception, match=reason):
        run_in_onnx(graph, feeds(case.sample), reference=False)


# -- types and contents ----------------------------------------------------------------------------


def _sizes(graph: Graph) -> dict[str, int]:
    """What the symbols of a graph's inputs stand for: the number that their name ends with."""
    found: set[str] = set()
    for value in graph.inputs:
        for dim in value.tensor.dims or ():
            found |= {str(dim)} if isinstance(dim, Sym) else set()
    return {name: int(name.lstrip("n").rpartition("_")[2]) for name in found}


@over(CASES)
@pytest.mark.parametrize("dims", [static, batch, by_size, each_its_own])
def test_inferred_types_hold_of_what_is_evaluated(case: Case, dims: Dims) -> None:
    graph = one_node(case.row.op, case.sample, dims)
    verify(graph)
    sizes, results = _sizes(graph), evaluate(graph, feeds(case.sample))
    for (name, got), value in zip(results.items(), graph.outputs, strict=True):
        assert value.tensor.dtype is DType.of(got), name
        known = value.tensor.dims
        if known is not None:
            assert len(known) == got.ndim, f"{value!r} is {got.shape}"
            for dim, size in zip(known, got.shape, strict=True):
                assert dim is None or dim_at(dim, sizes) == size, f"{value!r} is {got.shape}"
        if value.contents is not None:
            assert_contents(value.contents, got, sizes)


@over(CASES)
def test_static_operands_give_static_types(case: Case) -> None:
    graph = one_node(case.row.op, _all_constant(case.sample))
    for value in graph.outputs:
        known = value.tensor.dims
        assert known is not None
        if case.row.op not in DATA_DEPENDENT:
            assert None not in known, f"{value!r}"


# Ops whose results' sizes only the operands' numbers tell.
DATA_DEPENDENT = {"NonZero", "Unique", "Compress"}


def _all_constant(sample: Sample) -> Sample:
    everything = frozenset(i for i, a in enumerate(sample.inputs) if a is not None)
    return replace(sample, constant=everything)


@over([c for c in CASES if c.row.contents is not None])
def test_contents_of_known_operands_are_what_is_evaluated(case: Case) -> None:
    graph = one_node(case.row.op, _all_constant(case.sample))
    results = evaluate(graph, {})
    for got, value in zip(results.values(), graph.outputs, strict=True):
        if value.contents is not None:
            assert_contents(value.contents, got, {})


def _holds_sizes(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype.kind in "iu" and array.size <= 16


@over([c for c in CASES if any(map(_holds_sizes, c.sample.inputs)) and c.name not in ASSUMED])
def test_contents_of_symbolic_operands_are_what_is_evaluated(case: Case) -> None:
    """Elements of small integer operands are sizes, as shape arithmetic has them."""
    free = replace(case.sample, constant=frozenset())
    graph = one_node(case.row.op, free)
    sizes = _make_elements_symbolic(graph, free)
    graph.infer(next(graph.nodes))
    results = evaluate(graph, feeds(free))
    for got, value in zip(results.values(), graph.outputs, strict=True):
        known = value.tensor.dims or ()
        for dim, size in zip(known, got.shape, strict=bool(known)):
            assert dim is None or dim_at(dim, sizes) == size, f"{value!r} is {got.shape}"
        if value.contents is not None:
            assert_contents(value.contents, got, sizes)


def _make_elements_symbolic(graph: Graph, sample: Sample) -> dict[str, int]:
    """Gives small integer inputs contents: symbols for what may be a size, else the number."""
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        array = sample.inputs[int(value.name[1:])]
        if array is None or not _holds_sizes(array):
            continue
        elements = np.empty(array.size, object)
        for i, item in enumerate(array.reshape(-1).tolist()):
            elements[i] = item
            if 1 < item < 100:
                elements[i] = symbol(f"{value.name}_{i}")
                sizes[f"{value.name}_{i}"] = item
        value.contents = elements.reshape(array.shape)
    return sizes


def assert_contents(contents: np.ndarray, got: np.ndarray, sizes: dict[str, int]) -> None:
    assert contents.shape == got.shape
    for item, want in zip(contents.reshape(-1), got.reshape(-1).tolist(), strict=True):
        assert item is None or dim_at(item, sizes) == want


def test_contents_are_tracked_for_shape_arithmetic() -> None:
    """The assertions above hold of unknown contents as well: here they must be known."""
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (symbol("batch"), symbol("seq"), 12)))
    shape = graph.emit("Shape", [x])
    batch = graph.emit("Gather", [shape, graph.constant(np.array([0]))])
    flat = graph.emit("Mul", [batch, graph.emit("Gather", [shape, graph.constant(np.array([1]))])])
    made = graph.emit("Concat", [flat, graph.constant(np.array([3, 4]))], {"axis": 0})
    assert [str(d) for d in _known(contents_of(made))] == ["batch*seq", "3", "4"]
    y = graph.emit("Reshape", [x, made])
    assert str(y.type) == "f32[batch*seq, 3, 4]"


def _known(contents: np.ndarray | None) -> Sequence[Dim]:
    assert contents is not None
    return list(contents.reshape(-1))


# -- cost ------------------------------------------------------------------------------------------


@over([c for c in CASES if c.row.cost is not None])
def test_costs_are_numbers_and_those_of_symbolic_sizes(case: Case) -> None:
    static = TABLE.cost(next(one_node(case.row.op, case.sample).nodes))
    if case.row.op not in DATA_DEPENDENT:
        assert isinstance(static.macs, int) and isinstance(static.elementwise, int)
    graph = one_node(case.row.op, case.sample, by_size)
    symbolic, sizes = TABLE.cost(next(graph.nodes)), _sizes(graph)
    for dim, number in (
        (symbolic.macs, static.macs),
        (symbolic.elementwise, static.elementwise),
    ):
        assert dim is None or number is None or dim_at(dim, sizes) == number


# -- text ------------------------------------------------------------------------------------------


@over(CASES)
@pytest.mark.parametrize("dims", [static, each_its_own])
def test_one_node_prints_and_parses_back_the_same(case: Case, dims: Dims) -> None:
    graph = one_node(case.row.op, case.sample, dims)
    text = print_graph(graph)
    again = parse(text, TABLE, weights_of(graph))
    assert print_graph(again) == text
    node, back = next(graph.nodes), next(again.nodes)
    assert dict(back.attrs).keys() == dict(node.attrs).keys()
    for key, attr in node.attrs.items():
        if isinstance(attr, (int, float, str, tuple)):
            assert back.attrs[key] == attr, key
    assert [v.type for v in back.outputs] == [v.type for v in node.outputs]
