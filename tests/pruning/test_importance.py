"""What units are worth, against numbers worked out by hand, by torch, or by zeroing the units."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from tersor.backends import ort
from tersor.errors import InvalidOption
from tersor.frontends import load_model
from tersor.ir import Dense, Graph, parse, print_graph
from tersor.models import zoo
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate
from tersor.pipeline import Feeds, Pipeline
from tersor.pipeline.registry import optimization
from tersor.pruning.importance import CRITERIA, importance, information, refusal
from tersor.pruning.importance.activations import DAMPING
from tersor.structure import AxisGroup, axis_groups, split_vectors, zero_graph

MLP = """graph main(%x: f32[rows, 3]) -> (y = %y) {
  @w: f32[3, 4] = dense normal(1)
  @b: f32[4] = dense [0.5, -0.5, 0.25, -100.0]
  @v: f32[4, 2] = dense normal(2)
  %h: f32[rows, 4] = tersor.Linear(%x, @w, @b) {activation = "relu"} scope "hidden"
  %y: f32[rows, 2] = tersor.Linear(%h, @v)
}"""
DEAD = 3  # Its bias keeps it at zero.
NEED_DATA = [name for name, criterion in CRITERIA.items() if criterion.needs_data]


def rows(count: int = 20, seed: int = 0) -> Feeds:
    drawn = np.random.default_rng(seed).standard_normal((2, count, 3)).astype(np.float32)
    return [{"x": x} for x in drawn]


def hidden(graph: Graph) -> AxisGroup:
    (group,) = (group for group in axis_groups(graph) if group.free)
    return group


def scores(criterion: str, graph: Graph, feeds: Feeds = (), seed: int = 0) -> np.ndarray:
    return importance(criterion, graph, [hidden(graph)], feeds or rows(), evaluate, seed)[0]


def constants(graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    w, b, v = (graph.constants[name].numpy().astype(np.float64) for name in "wbv")
    return w, b, v


def activations(graph: Graph) -> np.ndarray:
    """f64[n, 4], the hidden layer on all feeds."""
    w, b, _ = constants(graph)
    x = np.concatenate([feed["x"] for feed in rows()]).astype(np.float64)
    return np.maximum(x @ w + b, 0)


def relative(numbers: np.ndarray) -> np.ndarray:
    return numbers / numbers.mean()


# -- from weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_norms_are_of_all_weights_of_a_unit(order: int) -> None:
    graph = parse(MLP, TABLE)
    w, b, v = constants(graph)
    own = np.vstack([w, b[None], v.T])
    expected = np.linalg.norm(own, ord=order, axis=0)
    np.testing.assert_allclose(scores(f"l{order}", graph), relative(expected), rtol=1e-12)


def test_a_weight_that_two_nodes_read_counts_once() -> None:
    shared = MLP.replace("(%h, @v)", "(%h2, @v)").replace(
        "  %y:",
        "  %h1: f32[rows, 4] = tersor.Linear(%h, @u)\n  %h2: f32[rows, 4] = tersor.Linear(%h1, @u)\n  %y:",
    )
    graph = parse(shared.replace("  @v:", "  @u: f32[4, 4] = dense normal(7)\n  @v:"), TABLE)
    w, b, v = constants(graph)
    u = np.abs(graph.constants["u"].numpy().astype(np.float64))
    own = np.abs(np.vstack([w, b[None], v.T])).sum(axis=0) + u.sum(axis=0) + u.sum(axis=1)
    np.testing.assert_allclose(scores("l1", graph), relative(own), rtol=1e-12)


def test_random_follows_the_seed() -> None:
    graph = parse(MLP, TABLE)
    first = scores("random", graph, seed=3)
    np.testing.assert_array_equal(first, scores("random", graph, seed=3))
    assert (first != scores("random", graph, seed=4)).all()


def test_fpgm_is_the_distance_to_all_others_and_lowest_for_twins() -> None:
    graph = parse(MLP, TABLE)
    w, b, _ = constants(graph)
    w[:, 1], b[:] = w[:, 0], 0
    for name, numbers in (("w", w), ("b", b)):
        graph.set_encoding(graph.constants[name], Dense(numbers.astype(np.float32)))
    apart = np.linalg.norm(w[:, :, None] - w[:, None], axis=0)
    found = scores("fpgm", graph)
    # Twins are 1e-8 apart at most where |a|^2 + |b|^2 - 2 a b loses all digits.
    np.testing.assert_allclose(found, relative(apart.sum(axis=1)), rtol=1e-6)
    assert found[0] == pytest.approx(found[1])


def test_structural_counts_the_paths_through_a_unit() -> None:
    graph = parse(
        """graph main(%x: f32[rows, 3]) -> (y = %y) {
          @a: f32[3, 4] = dense normal(1)
          @b: f32[4, 6] = dense normal(2)
          @c: f32[6, 4] = dense normal(3)
          @d: f32[4, 2] = dense normal(4)
          %h: f32[rows, 4] = tersor.Linear(%x, @a)
          %f: f32[rows, 6] = tersor.Linear(%h, @b) {activation = "relu"}
          %g: f32[rows, 4] = tersor.Linear(%f, @c)
          %s: f32[rows, 4] = Add(%h, %g)
          %y: f32[rows, 2] = tersor.Linear(%s, @d)
        }""",
        TABLE,
    )
    groups = [group for group in axis_groups(graph) if group.free]
    by_size = {
        g.units: s for g, s in zip(groups, importance("structural", graph, groups), strict=True)
    }
    np.testing.assert_allclose(by_size[4], 1 / 4)  # Both paths take the sum,
    np.testing.assert_allclose(by_size[6], 1 / 2 / 6)  # and one of them the neurons.


# -- from activations ------------------------------------------------------------------------------


def test_activations_are_seen_where_they_are_read() -> None:
    graph = parse(MLP, TABLE)
    a = activations(graph)
    expected = {
        "activation-mean": relative(a.mean(axis=0)),
        "activation-max": relative(a.max(axis=0)),
        "apoz": (a > 0).mean(axis=0),
        "wanda": relative(np.linalg.norm(a, axis=0) * np.abs(constants(graph)[2]).sum(axis=1)),
    }
    for criterion, numbers in expected.items():
        # Rows are f32.
        np.testing.assert_allclose(scores(criterion, graph), numbers, rtol=1e-5, err_msg=criterion)


def test_obs_is_what_least_squares_cannot_make_up_for() -> None:
    graph = parse(MLP, TABLE)
    a, v = activations(graph), constants(graph)[2]
    gram = a.T @ a
    ridge = np.sqrt(DAMPING * np.diagonal(gram).mean()) * np.eye(4)
    wide = np.vstack([a, ridge])  # |X D|^2 + damping |D|^2
    expected = []
    for unit in range(4):
        others = np.delete(wide, unit, axis=1)
        target = wide @ v
        left = target - others @ np.linalg.lstsq(others, target, rcond=None)[0]
        expected.append(np.square(left).sum() / np.trace(v.T @ gram @ v))
    np.testing.assert_allclose(scores("obs", graph), expected, rtol=1e-5)


def test_positions_of_a_map_count_one_by_one() -> None:
    graph = parse(
        """graph main(%x: f32[rows, 2, 5, 5]) -> (y = %y) {
          @w: f32[3, 2, 1, 1] = dense normal(1)
          @v: f32[4, 3, 3, 3] = dense normal(2)
          %c: f32[rows, 3, 5, 5] = Conv(%x, @w)
          %h: f32[rows, 3, 5, 5] = Relu(%c)
          %y: f32[rows, 4, 3, 3] = Conv(%h, @v)
        }""",
        TABLE,
    )
    x = np.random.default_rng(0).standard_normal((4, 2, 5, 5)).astype(np.float32)
    w, v = (graph.constants[n].numpy().astype(np.float64) for n in "wv")
    h = np.maximum(np.einsum("nchw,oc->onhw", x, w[:, :, 0, 0]), 0).reshape(3, -1)
    found = scores("apoz", graph, [{"x": x}])
    np.testing.assert_allclose(found, (h > 0).mean(axis=1), rtol=1e-9)
    sizes = np.abs(v).sum(axis=(0, 2, 3))
    expected = relative(np.linalg.norm(h, axis=1) * sizes)
    np.testing.assert_allclose(scores("wanda", graph, [{"x": x}]), expected, rtol=1e-5)


@cache
def padded() -> tuple[Graph, Feeds, Feeds]:
    """A graph with a mask of positions, feeds, and those with other numbers where there is padding."""
    graph = parse(
        """graph main(%x: f32[batch, seq, 3], %mask: i64[batch, seq]) -> (y = %y) {
          @w: f32[3, 4] = dense normal(1)
          @v: f32[4, 2] = dense normal(2)
          %h: f32[batch, seq, 4] = tersor.Linear(%x, @w) {activation = "gelu"}
          %y: f32[batch, seq, 2] = tersor.Linear(%h, @v)
        }""",
        TABLE,
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 3)).astype(np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    other = np.where(mask[..., None] == 1, x, 9).astype(np.float32)
    return graph, [{"x": x, "mask": mask}], [{"x": other, "mask": mask}]


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_padding_does_not_count(criterion: str) -> None:
    graph, feeds, others = padded()
    found = scores(criterion, graph, feeds)
    np.testing.assert_allclose(found, scores(criterion, graph, others), rtol=1e-5)
    unmasked = [{**feed, "mask": np.ones((2, 3), np.int64)} for feed in others]
    assert not np.allclose(found, scores(criterion, graph, unmasked), rtol=1e-3)


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_a_neuron_that_is_never_on_is_worth_nothing(criterion: str) -> None:
    graph = parse(MLP, TABLE)
    found = scores(criterion, graph)
    # Of obs the damping is left: |v|^2 of 1e-4 of what the inputs have on average.
    assert found[DEAD] == pytest.approx(0, abs=DAMPING if criterion == "obs" else 1e-12)
    assert (np.delete(found, DEAD) > 10 * DAMPING).all()


# -- from gradients --------------------------------------------------------------------------------


def test_slopes_are_those_of_the_module() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 5), torch.nn.GELU(), torch.nn.Linear(5, 2)]
    module = torch.nn.Sequential(*layers).eval()
    feeds = [{"input": feed["x"]} for feed in rows()]  # So is Sequential's argument called.
    example = {"input": torch.from_numpy(feeds[0]["input"])}
    names = {"input": {0: "rows"}}
    imported = load_model(module, example_inputs=example, dynamic_shapes=names, output_names=["y"])
    graph = Pipeline(optimization()).run(imported.graph)

    draws = torch.Generator().manual_seed(7)
    made, read = layers[0], layers[2]
    parameters = [made.weight, made.bias, read.weight]
    total = [torch.zeros_like(p) for p in parameters]
    for feed in feeds:
        y = module(torch.from_numpy(feed["input"]))
        signs = torch.randint(0, 2, y.shape, generator=draws) * 2 - 1
        for sums, g in zip(total, torch.autograd.grad((y * signs).sum(), parameters), strict=True):
            sums += g.abs()
    for criterion, factors in (("gradient", [1, 1, 1]), ("taylor", [p.abs() for p in parameters])):
        w, b, v = (t * f for t, f in zip(total, factors, strict=True))
        expected = ((w.sum(dim=1) + b + v.sum(dim=0)) / len(feeds)).detach().numpy()
        found = scores(criterion, graph, feeds, seed=7)
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=criterion)  # f32 inside


ONE = MLP.replace("f32[4, 2]", "f32[4, 1]").replace("f32[rows, 2]", "f32[rows, 1]")


def test_fisher_tells_the_samples_of_a_batch_apart() -> None:
    """y = h v: dy / dm_u = h_u v_u for each row, and the sign does not matter."""
    graph = parse(ONE, TABLE)
    expected = np.square(activations(graph) * constants(graph)[2][:, 0]).mean(axis=0)
    np.testing.assert_allclose(scores("fisher", graph), expected, rtol=1e-5)


def test_fisher_of_a_batch_of_a_fixed_size_is_right_on_average() -> None:
    graph = parse(ONE.replace("rows", "20"), TABLE)
    expected = np.square(activations(graph) * constants(graph)[2][:, 0]).sum(axis=0) / 2
    draws = 1000
    found = scores("fisher", graph, [*rows()] * draws)
    # A mean of 2000 squares of about normal numbers: each within sqrt(2 / 2000) = 3% at one sigma.
    np.testing.assert_allclose(found, expected, rtol=0.15)


# -- measured --------------------------------------------------------------------------------------

HEADS = """graph main(%x: f32[batch, seq, 6]) -> (y = %y) {
  @q: f32[6, 6] = dense normal(1)
  @k: f32[6, 6] = dense normal(2)
  @v: f32[6, 6] = dense normal(3)
  @o: f32[6, 5] = dense normal(4)
  @f: f32[5, 40] = dense normal(5)
  @g: f32[40, 2] = dense normal(6)
  %a: f32[batch, seq, 6] = tersor.Linear(%x, @q)
  %b: f32[batch, seq, 6] = tersor.Linear(%x, @k)
  %c: f32[batch, seq, 6] = tersor.Linear(%x, @v)
  %d: f32[batch, seq, 6] = Attention(%a, %b, %c) {q_num_heads = 2, kv_num_heads = 2}
  %e: f32[batch, seq, 5] = tersor.Linear(%d, @o)
  %h: f32[batch, seq, 40] = tersor.Linear(%e, @f) {activation = "relu"}
  %y: f32[batch, seq, 2] = tersor.Linear(%h, @g)
}"""
LSTM = """graph main(%x: f32[seq, batch, 3]) -> (y = %y) {
  @w: f32[1, 16, 3] = dense normal(1)
  @r: f32[1, 16, 4] = dense normal(2)
  @v: f32[4, 2] = dense normal(3)
  @axes: i64[1] = dense [1]
  %a: f32[seq, 1, batch, 4] = LSTM(%x, @w, @r) {hidden_size = 4}
  %b: f32[seq, batch, 4] = Squeeze(%a, @axes)
  %y: f32[seq, batch, 2] = tersor.Linear(%b, @v)
}"""


def zeroed(graph: Graph, index: int, units: list[int], feeds: Feeds) -> float:
    """The relative change of the outputs with ``units`` of a group zeroed."""
    copy = graph.copy()
    zero_graph(copy, axis_groups(copy)[index], units)
    change = energy = 0.0
    for feed in feeds:
        whole, left = (next(iter(evaluate(g, feed).values())) for g in (graph, copy))
        change += float(np.square(whole.astype(np.float64) - left).sum())
        energy += float(np.square(whole.astype(np.float64)).sum())
    return change / energy


@pytest.mark.parametrize(("text", "size"), [(HEADS, 6), (LSTM, 3)])
@pytest.mark.parametrize("run", [evaluate, ort.Evaluator()])
def test_information_gain_is_what_zeroing_changes(text: str, size: int, run: object) -> None:
    graph = parse(text, TABLE)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, size)).astype(np.float32)
    feeds = [{"x": batch} for batch in x]
    groups = axis_groups(graph)
    found = importance("information-gain", graph, groups, feeds, run)
    checked = 0
    for index, (group, gains) in enumerate(zip(groups, found, strict=True)):
        if not group.free or group.inexact:
            continue
        for chunk in information.chunks(group):
            expected = zeroed(graph, index, chunk.tolist(), feeds)
            # Differences of f32 outputs, squared.
            assert gains[chunk].sum() == pytest.approx(expected, rel=1e-3, abs=1e-9)
            assert (gains[chunk] > 0).all() or expected < 1e-9
            checked += 1
    assert checked >= 4


def test_like_units_are_measured_together_where_there_are_many() -> None:
    graph = parse(HEADS, TABLE)
    (group,) = (g for g in axis_groups(graph) if g.units == 40)
    found = list(information.chunks(group))
    assert len(found) == information.RUNS
    norms = importance("l2", graph, [group])[0]
    assert (np.diff(norms[np.concatenate(found)]) >= 0).all()
    assert sorted(np.concatenate(found)) == list(range(40))


# -- all of them -----------------------------------------------------------------------------------


@cache
def workload(name: str) -> tuple[Graph, Feeds]:
    found = zoo.find(name)
    imported = load_model(found.module().eval(), **found.torch_arguments())
    graph = Pipeline(optimization()).run(imported.graph)
    split_vectors(graph)
    return graph, [{k: v.numpy() for k, v in found.example_inputs().items()}]


@pytest.mark.parametrize("name", ["bert_tiny", "bilstm_tagger", "mobilenet_digits"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_group_of_a_model_gets_finite_scores(
    name: str, criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(information, "RUNS", 3)  # It is the same code for more.
    graph, feeds = workload(name)
    before = print_graph(graph)
    groups = axis_groups(graph)
    found = importance(criterion, graph, groups, feeds, ort.Evaluator())
    assert print_graph(graph) == before
    for group, numbers in zip(groups, found, strict=True):
        assert numbers.shape == (group.units,)
        assert numbers.dtype == np.float64
        assert np.isfinite(numbers).all()
        assert (numbers >= 0).all()
        assert numbers.any() == bool(group.free)


# -- refusals --------------------------------------------------------------------------------------


def test_an_unknown_criterion_is_told_with_the_known_ones() -> None:
    graph = parse(MLP, TABLE)
    with pytest.raises(
        InvalidOption, match=r"no criterion 'tailor', did you mean 'taylor'\?; .*l1"
    ):
        importance("tailor", graph, axis_groups(graph))


@pytest.mark.parametrize("criterion", NEED_DATA)
def test_what_needs_calibration_says_so(criterion: str) -> None:
    graph = parse(MLP, TABLE)
    message = f"criterion {criterion} needs calibration inputs, and none were given"
    with pytest.raises(InvalidOption, match=message):
        importance(criterion, graph, axis_groups(graph), [], evaluate)


def test_a_weight_that_holds_nan_is_named() -> None:
    graph = parse(MLP, TABLE)
    v = graph.constants["v"].numpy().copy()
    v[2, 0] = np.nan
    graph.set_encoding(graph.constants["v"], Dense(v))
    with pytest.raises(
        InvalidOption, match="l1 does not apply to hidden#2: its weight @v contains NaN"
    ):
        importance("l1", graph, axis_groups(graph))


def test_activations_that_are_nan_are_told() -> None:
    graph = parse(MLP, TABLE)
    feeds = [{"x": np.full((2, 3), np.nan, np.float32)}]
    for criterion in NEED_DATA:
        with pytest.raises(
            InvalidOption, match="apply to hidden#2: calibration leads to NaN or infinity"
        ):
            importance(criterion, graph, [hidden(graph)], feeds, evaluate)


def test_what_calibration_cannot_see_is_refused() -> None:
    graph = parse(
        """graph main(%x: f32[rows, 3], %c: bool[]) -> (y = %y) {
          @w: f32[3, 4] = dense normal(1)
          @v: f32[4, 2] = dense normal(2)
          %y: f32[rows, 2] = If(%c) {else_branch = graph else() -> (r = %q) {
            @u: f32[3, 2] = dense normal(3)
            %q: f32[rows, 2] = tersor.Linear(%x, @u)
          }, then_branch = graph then() -> (r = %p) {
            %h: f32[rows, 4] = tersor.Linear(%x, @w)
            %p: f32[rows, 2] = tersor.Linear(%h, @v)
          }}
        }""",
        TABLE,
    )
    group = hidden(graph)
    reason = refusal("wanda", graph, group)
    assert reason == "its units are read in a subgraph, which calibration does not observe"
    assert refusal("l1", graph, group) == ""
    feeds = [{"x": rows()[0]["x"], "c": np.array(True)}]
    gains = importance("information-gain", graph, [group], feeds, evaluate)[0]
    assert (gains > 0).all()
