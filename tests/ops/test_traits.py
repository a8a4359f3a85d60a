"""What the traits of a row promise, on the row's own samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tersor.ir import Affine, DType, TensorType, symbol
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.ops.samples import Case, cases, feeds, one_node

CASES = cases()


def with_trait(trait: str) -> pytest.MarkDecorator:
    chosen = [case for case in CASES if trait in case.row.traits]
    assert chosen
    return pytest.mark.parametrize("case", chosen, ids=[case.name for case in chosen])


def results(case: Case, inputs: list[np.ndarray | None] | None = None) -> list[np.ndarray]:
    sample = case.sample if inputs is None else replace(case.sample, inputs=inputs)
    return list(evaluate(one_node(case.row.op, sample), feeds(sample)).values())


def data(case: Case) -> np.ndarray:
    (first, *_) = case.sample.inputs
    assert first is not None
    return first


@with_trait("view")
def test_a_view_keeps_elements_and_their_order(case: Case) -> None:
    assert "movement" in case.row.traits
    for made in results(case):
        np.testing.assert_array_equal(made.reshape(-1), data(case).reshape(-1))


@with_trait("movement")
def test_a_movement_makes_no_element_of_its_own(case: Case) -> None:
    x = data(case)
    own = np.arange(x.size, dtype=np.int64).reshape(x.shape) + 1000
    for made in results(
        case, [own.astype(x.dtype) if x.dtype != bool else x, *case.sample.inputs[1:]]
    ):
        known = x if x.dtype == bool else own.astype(x.dtype)
        assert set(made.reshape(-1).tolist()) <= set(known.reshape(-1).tolist())


@with_trait("elementwise")
def test_an_elementwise_op_does_the_same_everywhere(case: Case) -> None:
    """Elements of the operands, broadcast, and those of the result are shuffled alike."""
    sample = case.sample
    shapes = [
        v.shape for i, v in enumerate(sample.inputs) if v is not None and not _is_setting(case, i)
    ]
    shape = np.broadcast_shapes(*shapes)
    order = np.random.default_rng(0).permutation(int(np.prod(shape)))
    spread = [
        v if v is None or _is_setting(case, i) else np.broadcast_to(v, shape).reshape(-1)
        for i, v in enumerate(sample.inputs)
    ]
    if case.row.op in ("Clip", "Dropout"):
        spread = [spread[0], *sample.inputs[1:]]
    shuffled = [
        v
        if v is None or _is_setting(case, i) or (i and case.row.op in ("Clip", "Dropout"))
        else v[order]
        for i, v in enumerate(spread)
    ]
    plain, moved = results(case, spread)[0], results(case, shuffled)[0]
    # Vector instructions handle the end of an array in another way than its middle.
    np.testing.assert_allclose(_plain(moved), _plain(plain[order]), rtol=1e-6, atol=1e-6)


def _is_setting(case: Case, index: int) -> bool:
    """An operand that only tells a type."""
    return case.row.op == "CastLike" and index == 1


def _plain(x: np.ndarray) -> np.ndarray:
    return x if x.dtype.kind in "biufU" else x.astype(np.float32)


@with_trait("shape")
def test_a_shape_op_reads_no_element(case: Case) -> None:
    other = np.roll(data(case).reshape(-1), 1).reshape(data(case).shape)
    for made, again in zip(
        results(case), results(case, [other, *case.sample.inputs[1:]]), strict=True
    ):
        np.testing.assert_array_equal(made, again)


@with_trait("reduction")
def test_a_reduction_drops_the_dims_that_it_keeps_as_ones(case: Case) -> None:
    kept, dropped = (
        results(
            replace(case, sample=replace(case.sample, attrs={**case.sample.attrs, "keepdims": k}))
        )[0]
        for k in (1, 0)
    )
    assert kept.ndim == data(case).ndim
    np.testing.assert_array_equal(kept.reshape(dropped.shape), dropped)


@with_trait("product")
def test_a_product_is_linear_in_its_first_operand(case: Case) -> None:
    x = data(case)
    if x.dtype.kind != "f" or case.sample.attrs.get("activation", "none") != "none":
        pytest.skip("integers of limited range, or an activation behind it")
    zero, one, two = (
        results(case, [(x * factor).astype(x.dtype), *case.sample.inputs[1:]])[0].astype(np.float64)
        for factor in (0, 1, 2)
    )
    np.testing.assert_allclose(two - zero, 2 * (one - zero), rtol=1e-3, atol=1e-4)


@with_trait("sum")
def test_a_sum_depends_on_the_sum_of_its_operands_alone(case: Case) -> None:
    x, y, *rest = case.sample.inputs
    assert x is not None and y is not None
    total = x + y
    for first, again in zip(
        results(case), results(case, [total, np.zeros_like(total), *rest]), strict=True
    ):
        np.testing.assert_array_equal(first, again)


@with_trait("decision")
def test_a_decision_depends_on_the_order_of_its_scores(case: Case) -> None:
    """Doubling scores is exact and changes no order: selections stay, and probabilities keep their order."""
    if data(case).dtype.kind != "f":
        pytest.skip("twice an integer may not fit")
    axis = case.sample.attrs.get("axis", -1)
    assert isinstance(axis, int)
    doubled = [data(case) * 2, *case.sample.inputs[1:]]
    for first, again in zip(results(case), results(case, doubled), strict=True):
        if first.dtype.kind == "f":
            first, again = (np.argsort(x, axis=axis, kind="stable") for x in (first, again))
        np.testing.assert_array_equal(first, again)


@with_trait("rank")
def test_the_first_result_has_the_rank_of_the_first_operand(case: Case) -> None:
    assert results(case)[0].ndim == data(case).ndim


def test_no_op_is_of_two_kinds_that_exclude_each_other() -> None:
    exclusive = {"elementwise", "normalization", "reduction", "product", "shape"}
    for row in TABLE:
        count = Counter(trait in exclusive for trait in row.traits)[True]
        assert count <= 1, row.op


def test_a_cost_counts_bytes_as_they_are_held() -> None:
    graph = TABLE.graph()
    x = graph.add_input("x", TensorType(DType.F32, (symbol("n"), 6)))
    y = graph.emit("MatMul", [x, graph.constant(np.ones((6, 4), np.float16).astype(np.float32))])
    z = graph.emit("Reshape", [y, graph.constant(np.array([-1, 2], np.int64))])
    graph.set_outputs([z])
    product, view = graph.nodes
    n = symbol("n")
    assert TABLE.cost(product).bytes == 4 * n * 6 + 4 * 6 * 4 + 4 * n * 4
    assert TABLE.cost(view).bytes == 0
    few = Affine(np.ones((6, 4), np.int8), np.ones(4, np.float32), np.zeros(4, np.int8), axis=1)
    graph.set_encoding(product.inputs[1], few)  # type: ignore[arg-type]
    assert TABLE.cost(product).bytes == 4 * n * 6 + few.nbytes + 4 * n * 4
