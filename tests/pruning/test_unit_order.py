"""The order that units go in, against removing each and solving by numpy's least squares."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tersor.ir import parse
from tersor.numerics.second_order import damped
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.pruning import unit_order
from tersor.pruning.unit_order import (
    Order,
    Reader,
    by_energy,
    by_least_squares,
    equal_shares,
    layer_of,
    multiplied_activations,
    not_refittable,
    readers,
    sums_only_activations,
)
from tersor.statistics.gram import Gram, grams_of_rows
from tersor.statistics.observing import Rows
from tersor.statistics.products import matrices
from tersor.structure import AxisGroup, axis_groups

ROWS, N = 80, 3
DAMPING = 1e-10  # As good as none: what is compared with is plain least squares.
CLOSE = {"rtol": 1e-4, "atol": 1e-8}  # f64; what the damping leaves.

Layer = tuple[np.ndarray, np.ndarray, np.ndarray]
"""x [rows, k], W [k, n], the unit of each of the k."""


def layer(units: int, each: int, seed: int = 0) -> Layer:
    rng = np.random.default_rng(seed)
    k = units * each
    x = rng.standard_normal((ROWS, k)) @ (np.eye(k) + 0.5 * rng.standard_normal((k, k)))
    return x, rng.standard_normal((k, N)), np.repeat(np.arange(units), each)


def loss(layers: list[Layer], gone: list[int]) -> float:
    """What is lost without units when the others make up for it, of each layer's whole."""
    total = 0.0
    for x, weight, owner in layers:
        kept = x[:, ~np.isin(owner, gone)]
        target = x @ weight
        rest = target - kept @ np.linalg.lstsq(kept, target, rcond=None)[0]
        total += np.square(rest).sum() / np.square(target).sum()
    return total


def order_of(
    layers: list[Layer], units: int, pinned: dict[int, str] | None = None, most: int | None = None
) -> Order:
    group = AxisGroup("g", units, {}, pinned or {})
    entries = [
        (Reader(None, None, None, o), x.T @ x, w, float(np.square(x @ w).sum()))  # type: ignore[arg-type]
        for x, w, o in layers
    ]
    return by_least_squares(group, entries, DAMPING, most)


CASES = {
    "one layer": [layer(8, 1)],
    "units of three inputs": [layer(6, 3, 1)],
    "two layers": [layer(7, 1, 2), layer(7, 2, 3)],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [48, 2])
def test_each_unit_is_the_cheapest_left_and_losses_are_those_of_least_squares(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = CASES[name]
    units = int(layers[0][2].max()) + 1
    if steps == 2:
        # All units are looked at, a few at a time.
        monkeypatch.setattr(unit_order, "STEPS", 2)
        monkeypatch.setattr(unit_order, "CHOICE", units)
    order = order_of(layers, units)
    assert len(order.units) == units - 1
    gone: list[int] = []
    for unit, told in zip(order.units.tolist(), order.losses, strict=True):
        offered = {u: loss(layers, [*gone, u]) for u in range(units) if u not in gone}
        best = min(offered.values())
        assert offered[unit] == pytest.approx(best, rel=1e-6, abs=1e-9)
        gone.append(unit)
        if len(gone) < units:
            # Each layer makes up for itself: losses of several are sums of exact ones.
            np.testing.assert_allclose(told, loss(layers, gone), **CLOSE)


def one_at_a_time(
    layers: list[Layer], units: list[int], count: int
) -> tuple[list[int], np.ndarray]:
    """The same rule without blocks: each removal changes all of W and P, an input at a time."""
    states = [
        (w.T / np.sqrt(np.square(x @ w).sum()), np.linalg.inv(damped(x.T @ x, DAMPING)), owner)
        for x, w, owner in layers
    ]

    def cost(unit: int) -> float:
        total = 0.0
        for w, p, owner in states:
            at = np.flatnonzero(owner == unit)
            total += np.trace(w[:, at] @ np.linalg.inv(p[np.ix_(at, at)]) @ w[:, at].T)
        return total

    step = max(1, count // unit_order.STEPS)
    left, order, losses = list(units), list[int](), list[float]()
    while len(order) < count:
        most = min(step, count - len(order))
        near = sorted(left, key=cost)[: unit_order.CHOICE * most]
        for _ in range(most):
            unit = min(near, key=cost)
            losses.append(cost(unit))
            for i, (w, p, owner) in enumerate(states):
                for j in np.flatnonzero(owner == unit):
                    row = p[j] / p[j, j]
                    w, p = w - np.outer(w[:, j], row), p - np.outer(p[:, j], row)
                    p[j, :] = p[:, j] = 0
                states[i] = w, p, owner
            near.remove(unit)
            left.remove(unit)
            order.append(unit)
    return order, np.cumsum(losses)


@pytest.mark.parametrize("cached", [0, 1 << 16])
def test_blocks_of_removals_give_the_order_of_single_ones(
    cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of units of one and of two inputs, some of which stay, and of inputs that belong to none."""
    monkeypatch.setattr(unit_order, "STEPS", 5)
    monkeypatch.setattr(unit_order, "CACHED", cached)
    layers = [layer(30, 1, 7), layer(30, 2, 8)]
    x, weight, owner = layers[1]
    layers[1] = (
        np.hstack([x, x[:, :4] + 1.0]),
        np.vstack([weight, weight[:4]]),
        np.pad(np.random.default_rng(0).permutation(owner), (0, 4), constant_values=-1),
    )
    order = order_of(layers, 30, pinned={3: "needed", 17: "needed"}, most=26)
    want, losses = one_at_a_time(layers, [u for u in range(30) if u not in (3, 17)], 26)
    assert order.units.tolist() == want
    np.testing.assert_allclose(order.losses, losses, rtol=1e-5)


def test_the_first_is_the_best_of_all_and_pairs_are_close_to_the_best_pair() -> None:
    layers = [layer(9, 1, 5)]
    order = order_of(layers, 9)
    best = min(loss(layers, list(pair)) for pair in combinations(range(9), 2))
    assert loss(layers, order.units[:2].tolist()) <= 1.5 * best
    assert loss(layers, order.units[:1].tolist()) == min(loss(layers, [u]) for u in range(9))


def test_of_units_that_stand_in_for_each_other_one_stays_also_where_many_go_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20 pairs of equal units: each is worth nothing as long as the other is there."""
    monkeypatch.setattr(unit_order, "STEPS", 2)
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((ROWS, 20)), 2, axis=1)
    # Not quite equal: otherwise the inverse would be of a matrix that has none.
    x = x + 1e-4 * rng.standard_normal(x.shape)
    layers = [(x, rng.standard_normal((40, N)), np.arange(40))]
    order = order_of(layers, 40, most=20)
    assert sorted(u // 2 for u in order.units) == list(range(20))
    assert order.losses[-1] < 1e-6
    assert loss(layers, order.units.tolist()) < 1e-6


def test_units_that_are_always_zero_go_first_at_no_loss() -> None:
    x, weight, owner = layer(8, 1)
    x[:, [2, 5]] = 0
    order = order_of([(x, weight, owner)], 8)
    assert sorted(order.units[:2].tolist()) == [2, 5]
    assert order.losses[1] < 1e-9
    assert order.losses[2] > 1e-4


def test_pinned_units_stay_and_no_more_are_ordered_than_asked() -> None:
    order = order_of(CASES["one layer"], 8, pinned={0: "needed", 3: "needed"})
    assert sorted(order.units.tolist()) == [1, 2, 4, 5, 6, 7]
    assert len(order_of(CASES["one layer"], 8, most=3).units) == 3
    assert (np.diff(order.losses) >= 0).all()


def test_a_layer_that_sees_nothing_loses_nothing_by_the_numbers_that_it_has() -> None:
    """All inputs are zero: the smallest weights go first."""
    weight = np.array([[3.0], [1.0], [2.0]])
    order = order_of([(np.zeros((5, 3)), weight, np.arange(3))], 3)
    assert order.units[:2].tolist() == [1, 2]


def test_scores_are_shares_of_their_sum() -> None:
    order = Order.by_scores(np.array([4.0, 1.0, 2.0, 1.0]), [0, 1, 3])
    assert order.units.tolist() == [1, 3, 0]
    np.testing.assert_allclose(order.losses, [1 / 8, 2 / 8, 6 / 8])
    assert Order.by_scores(np.zeros(3), [0, 1, 2]).losses.tolist() == [0, 0, 0]


# -- of graphs -------------------------------------------------------------------------------------

HEADS = """graph main(%x: f32[b, s, 5]) -> (y = %y) {{
  @wq: f32[5, 6] = dense normal(0)
  @wk: f32[5, 6] = dense normal(1)
  @wv: f32[5, 6] = dense normal(2)
  @wo: f32[6, 5] = dense normal(3)
  @g: f32[2] = dense [1.0, 2.0]
  @two: i64[4] = dense [0, 0, 3, 2]
  @one: i64[3] = dense [0, 0, 6]
  %q: f32[b, s, 6] = tersor.Linear(%x, @wq) {{activation = "none"}}
  %k: f32[b, s, 6] = tersor.Linear(%x, @wk) {{activation = "none"}}
  %v: f32[b, s, 6] = tersor.Linear(%x, @wv) {{activation = "none"}}
{norm}
  %a: f32[b, s, 6] = Attention({q}, %k, %v) {{q_num_heads = 3, kv_num_heads = 3}}
  %y: f32[b, s, 5] = tersor.Linear(%a, @wo) {{activation = "none"}}
}}"""
NORM = """  %r: f32[b, s, 3, 2] = Reshape(%q, @two)
  %t: f32[b, s, 3, 2] = RMSNormalization(%r, @g) {axis = -1}
  %n: f32[b, s, 6] = Reshape(%t, @one)"""


def lanes(text: str) -> AxisGroup:
    """The group of the lanes of queries and keys."""
    graph = parse(text, TABLE)
    found = [g for g in axis_groups(graph) if (graph.constants["wk"], 1) in g.axes]
    return next(g for g in found if (graph.constants["wv"], 1) not in g.axes)


def test_lanes_of_queries_and_keys_are_worth_the_energy_of_their_products() -> None:
    group = lanes(HEADS.format(norm="", q="%q"))
    assert sums_only_activations(group)
    assert {value.name for value, _ in multiplied_activations(group)} == {"q", "k"}
    assert readers(group) == []
    graph = group.links[0].node.graph
    assert graph is not None
    x = np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32)
    seen = grams_of_rows(
        graph, [Rows(v) for v, _ in multiplied_activations(group)], [{"x": x}], evaluate
    )
    q, k = (x @ graph.constants[w].numpy() for w in ("wq", "wk"))
    want = np.array([np.square(q[..., i::2]).sum() * np.square(k[..., i::2]).sum() for i in (0, 1)])
    np.testing.assert_allclose(by_energy(group, seen), want, rtol=1e-5)
    assert by_energy(group, {}) is None


def test_lanes_that_a_norm_is_over_do_not_only_meet() -> None:
    group = lanes(HEADS.format(norm=NORM, q="%n"))
    assert group.inexact
    assert not sums_only_activations(group)


def test_readers_of_heads_and_of_a_layer_with_two_readers() -> None:
    graph = parse(HEADS.format(norm="", q="%q"), TABLE)
    group = next(g for g in axis_groups(graph) if g.units == 3)
    (reader,) = readers(group)
    assert reader.node.output.name == "y"
    assert reader.owner.tolist() == [0, 0, 1, 1, 2, 2]
    assert reader.inputs([2, 0]).tolist() == [0, 1, 4, 5]
    assert reader.sole
    assert equal_shares(group, reader)
    assert not sums_only_activations(group)
    assert by_energy(group, {}) is None
    x = np.random.default_rng(1).standard_normal((30, 6))
    _, xtx, matrix, squares = layer_of(reader, Gram(x.T @ x, x.sum(axis=0), 30))
    np.testing.assert_array_equal(matrix, matrices(reader.node, reader.weight)[0])
    np.testing.assert_allclose(xtx, 30 * np.cov(x.T, bias=True))
    assert squares == pytest.approx(np.square((x - x.mean(axis=0)) @ matrix).sum())


def test_weights_with_two_readers_and_layers_in_subgraphs() -> None:
    text = """graph main(%c: bool[], %x: f32[n, 4]) -> (y = %y, z = %z) {
  @w: f32[4, 6] = dense normal(0)
  @v: f32[6, 3] = dense normal(1)
  %h: f32[n, 6] = tersor.Linear(%x, @w) {activation = "relu"}
  %i: f32[n, 6] = tersor.Linear(%x, @w) {activation = "none"}
  %y: f32[n, 3] = tersor.Linear(%h, @v) {activation = "none"}
  %z: f32[n, 3] = If(%c) {else_branch = graph no() -> (a = %a) {
    %a: f32[n, 3] = tersor.Linear(%i, @v) {activation = "none"}
  }, then_branch = graph yes() -> (b = %b) {
    %b: f32[n, 3] = Neg(%y)
  }}
}"""
    graph = parse(text, TABLE)
    group = next(g for g in axis_groups(graph) if g.units == 6)
    (reader,) = readers(group)
    assert reader.node.output.name == "y"
    assert not reader.sole


CHANNELS = """graph main(%x: f32[n, 2, 5, 5]) -> (y = %y, z = %z, u = %u, v = %v) {
  @w: f32[6, 2, 1, 1] = dense normal(0)
  @a: f32[3, 6, 2, 2] = dense normal(1)
  @b: f32[4, 6, 3, 1] = dense normal(2)
  @c: f32[4, 3, 2, 2] = dense normal(3)
  @t: f32[6, 2, 2, 2] = dense normal(4)
  %h: f32[n, 6, 5, 5] = Conv(%x, @w)
  %y: f32[n, 3, 4, 4] = Conv(%h, @a)
  %z: f32[n, 4, 3, 5] = Conv(%h, @b)
  %u: f32[n, 4, 4, 4] = Conv(%h, @c) {group = 2}
  %v: f32[n, 2, 6, 6] = ConvTranspose(%h, @t)
}"""


def test_convolutions_read_a_unit_at_every_place_of_the_kernel_or_are_told() -> None:
    text = "\n".join(
        line for line in CHANNELS.splitlines() if "%u: " not in line and "%v: " not in line
    )
    graph = parse(text.replace(", u = %u, v = %v", ""), TABLE)
    group = next(g for g in axis_groups(graph) if g.units == 6)
    found = {r.node.output.name: r for r in readers(group)}
    assert set(found) == {"y", "z"}
    for name, places in (("y", 4), ("z", 3)):
        assert found[name].owner.tolist() == [0, 1, 2, 3, 4, 5] * places
        assert equal_shares(group, found[name])
        cut = group.positions([1, 4])
        want = sorted(6 * p + u for p in range(places) for u in (1, 4))
        assert found[name].inputs_at(cut).tolist() == found[name].inputs([4, 1]).tolist() == want
    assert found["y"].rows != found["z"].rows  # one operand, two windows
    assert not_refittable(group) == []

    graph = parse(CHANNELS, TABLE)
    told = {
        (node.output.name, why)
        for g in axis_groups(graph) if (graph.constants["w"], 0) in g.axes
        for node, why in not_refittable(g)
    }  # fmt: skip
    assert told == {
        ("u", "Conv does not multiply rows of an operand by @c as one matrix"),
        ("v", "ConvTranspose does not multiply rows of an operand by @t as one matrix"),
    }


def test_channels_that_convolutions_read_go_in_the_order_of_least_squares() -> None:
    """The patches, by hand, and the solution that numpy has without each of the channels."""
    text = "\n".join(
        line for line in CHANNELS.splitlines() if "%u: " not in line and "%v: " not in line
    )
    graph = parse(text.replace(", u = %u, v = %v", ""), TABLE)
    group = next(g for g in axis_groups(graph) if g.units == 6)
    x = np.random.default_rng(0).standard_normal((9, 2, 5, 5)).astype(np.float32)
    # Of 2 input channels 6 are made, with noise: with none of it all but two would go for nothing.
    h = np.einsum("oc,nchw->nohw", graph.constants["w"].numpy()[:, :, 0, 0], x).astype(np.float64)
    h += 0.5 * np.random.default_rng(1).standard_normal(h.shape)
    layers, entries = [], []
    for reader in readers(group):
        kh, kw = (2, 2) if reader.node.output.name == "y" else (3, 1)
        rows = np.stack(
            [
                h[n, :, i : i + kh, j : j + kw].transpose(1, 2, 0).reshape(-1)
                for n in range(9) for i in range(6 - kh) for j in range(6 - kw)
            ]
        )  # fmt: skip
        rows -= rows.mean(axis=0)
        matrix, _ = matrices(reader.node, reader.weight)
        layers.append((rows, matrix, np.tile(np.arange(6), kh * kw)))
        gram = Gram(rows.T @ rows, rows.sum(axis=0), len(rows))
        entries.append(layer_of(reader, gram))
    order = by_least_squares(group, entries, DAMPING)
    gone: list[int] = []
    for unit, told in zip(order.units.tolist(), order.losses, strict=True):
        offered = {u: loss(layers, [*gone, u]) for u in range(6) if u not in gone}
        assert offered[unit] == pytest.approx(min(offered.values()), rel=1e-6, abs=1e-9)
        gone.append(unit)
        np.testing.assert_allclose(told, loss(layers, gone), **CLOSE)


def test_units_that_a_recurrent_layer_reads_and_its_own() -> None:
    text = """graph main(%x: f32[s, n, 4]) -> (y = %y) {
  @e: f32[4, 5] = dense normal(0)
  @w: f32[2, 9, 5] = dense normal(1)
  @r: f32[2, 9, 3] = dense normal(2)
  @o: f32[6, 2] = dense normal(3)
  @two: i64[3] = dense [0, 0, 6]
  %h: f32[s, n, 5] = tersor.Linear(%x, @e) {activation = "tanh"}
  %g: f32[s, 2, n, 3] = GRU(%h, @w, @r) {direction = "bidirectional", hidden_size = 3}
  %t: f32[s, n, 2, 3] = Transpose(%g) {perm = [0, 2, 1, 3]}
  %f: f32[s, n, 6] = Reshape(%t, @two)
  %y: f32[s, n, 2] = tersor.Linear(%f, @o) {activation = "none"}
}"""
    graph = parse(text, TABLE)
    groups = {g.units: g for g in axis_groups(graph) if g.free}
    (reader,) = readers(groups[5])
    assert reader.node.op == "GRU"
    assert reader.owner.tolist() == list(range(5))
    assert reader.outputs == (graph.constants["w"], 1)
    assert matrices(reader.node, reader.weight)[0].shape == (5, 18)
    states = [r for r in readers(groups[3]) if r.node.op == "GRU"]
    assert [r.weight.part for r in states] == [0, 1]
    assert {r.outputs for r in states} == {(graph.constants["r"], 1)}
    assert [r.owner.tolist() for r in states] == [[0, 1, 2]] * 2
    (head,) = [r for r in readers(groups[3]) if r.node.op == "tersor.Linear"]
    assert head.owner.tolist() == [0, 1, 2] * 2
    assert not_refittable(groups[3]) == []
    # Where biases lie: of the input's half and of the states', each of three gates.
    cut = groups[3].positions([2])
    for one in (*states, reader):
        assert one.biases_at(cut).tolist() == [2, 5, 8, 11, 14, 17]
