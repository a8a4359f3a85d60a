"""Lossy recipes on random graphs with hostile weights: they never crash, what they build runs, and the
errors that they state hold when they are computed anew."""

from __future__ import annotations

import numpy as np
import pytest
from differential import Runner
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Case
from strategies.lossy import lossy_cases
from strategies.profile import scaled

from tersor.backends import ort
from tersor.driver.recipe import Recipe
from tersor.ir import Affine, Graph, Node, TensorType, Value, verify
from tersor.numerics.affine import relative_error
from tersor.ops.evaluate import evaluate
from tersor.pipeline import Pipeline
from tersor.pipeline.registry import optimization
from tersor.pipeline.report import PassReport
from tersor.pipeline.rewriting import without_backend
from tersor.target import Target

SATURATES = Target("cpu:avx2", "cpu", frozenset({"avx2", "fma"}), 1)
EXACT = Target("cpu:avx512_vnni", "cpu", frozenset({"avx2", "avx512f", "avx512_vnni"}), 1)
LIMIT = 0.1


def originals(
    case: Case,
) -> list[tuple[dict[str, np.ndarray], dict[str, tuple[np.dtype, tuple[int, ...]]]]]:
    """The inputs that the graph itself runs on (a Reshape may not take a batch of none), and dtypes and
    shapes of what it gives for them."""
    runner = Runner(case.graph, None)
    found = []
    for feed in case.feeds:
        try:
            made = runner(feed)
        except Exception:  # ONNX Runtime's exceptions share no base of theirs.
            continue
        found.append((feed, {k: (v.dtype, v.shape) for k, v in made.items()}))
    assume(found)
    return found


def only_rows(*asked: object) -> str | None:
    """A backend that has kernels for everything."""
    return None


def compressed(
    case: Case, target: Target, calibrated: bool, per_token: bool
) -> tuple[Graph, list[tuple[Graph, Graph, PassReport]]]:
    """The graph after the shipped recipe, which takes layers of any size here, and each of its passes:
    the graph before, after, the report."""
    recipe = Recipe.of("int8").override(
        {
            "quantize-dynamic.min_elements": 0,
            "quantize-dynamic.max_error": LIMIT,
            "quantize-embedding.min_elements": 0,
            "quantize-weights.min_elements": 1,
        }
    )
    graph = Pipeline(optimization()).run(case.graph)
    steps = []
    for step in recipe.build():
        # f64 would take other kernels: calibration runs what the model is.
        pipeline = Pipeline(
            [step],
            level="text",
            target=target,
            calibration=case.feeds[:1] if calibrated else (),  # one range, as in one run
            evaluate=evaluate,
            supports=only_rows if per_token else without_backend,
        )
        after = pipeline.run(graph)
        steps.append((graph, after, pipeline.reports[0]))
        graph = after
    return graph, steps


@pytest.mark.slow
@scaled(150)
@given(lossy_cases(), st.sampled_from([SATURATES, EXACT]), st.booleans(), st.booleans())
def test_int8_builds_runs_and_states_its_errors(
    case: Case, target: Target, calibrated: bool, per_token: bool
) -> None:
    wanted = originals(case)
    case = Case(case.graph, [feed for feed, _ in wanted])
    after, steps = compressed(case, target, calibrated, per_token)
    verify(after)
    for portable in (False, True):
        choice = ort.Choice(ort.LowerOptions(portable=portable))
        session = ort.open_session(ort.build(after, choice), choice)
        for feed, kinds in wanted:
            made = session.run(feed)
            assert {k: (v.dtype, v.shape) for k, v in made.items()} == kinds
    for before, result, report in steps:
        if report.name.startswith("smooth-activations") and calibrated:
            check_smoothing(case, before, result)
        if report.name.startswith("quantize-dynamic"):
            check_layers(case, before, result, report, calibrated, per_token)
        if report.name.startswith("quantize-embedding"):
            check_tables(before, result, report)
        if report.name.startswith("quantize-weights"):
            check_weights(case, before, result, report, calibrated)


def check_smoothing(case: Case, before: Graph, after: Graph) -> None:
    """What was finite stays so, and is the same but for rounding."""
    for name, want in evaluate(before, case.feeds[0]).items():
        got = evaluate(after, case.feeds[0])[name]
        finite = np.isfinite(want)
        assert np.isfinite(got[finite]).all(), name
        # Of f32, through a few layers; of f16 nothing is smoothed.
        assert relative_error(want[finite], got[finite]) <= 1e-3, name


def check_layers(
    case: Case, before: Graph, after: Graph, report: PassReport, calibrated: bool, per_token: bool
) -> None:
    """The worst layer's error, as ONNX defines the quantizers, is what the report says, and within the
    limit. Without calibration none is stated."""
    told = [n for n in report.notes if n.worst is not None]
    held = {n.output.name: n for n in after.nodes if _is_quantized(n)}
    assert report.rewrites == len(held)
    if not calibrated:
        assert not told
        return
    errors = [
        _error(case, before, node, held[node.output.name], per_token)
        for node in before.nodes
        if node.output.name in held
    ]
    assert bool(told) == bool(errors)
    if errors:
        # Float sums in another order, and f32 scales on the edge of a rounding.
        assert told[0].worst is not None
        assert max(errors) <= told[0].worst * 1.02 + 1e-3, (errors, told)
        assert max(errors) <= LIMIT * 1.02 + 1e-3


def _is_quantized(node: Node) -> bool:
    weight = node.inputs[1] if node.op == "tersor.Linear" else None
    return weight is not None and isinstance(weight.encoding, Affine)


def _error(case: Case, before: Graph, node: Node, quantized: Node, per_token: bool) -> float:
    """Relative root mean square error of the layer's product on the calibration inputs."""
    assert node.inputs[0] is not None and node.inputs[1] is not None
    assert quantized.inputs[1] is not None
    weight = node.inputs[1].numpy().astype(np.float64)
    integers = quantized.inputs[1].numpy().astype(np.float64)
    tapped = before.copy()
    named = {v.name: v for v in tapped.values()}
    tapped.set_outputs([named[node.inputs[0].name]], ["x"])
    wanted, got = [], []
    for feed in case.feeds[:1]:
        x = evaluate(tapped, feed)["x"]
        if per_token:  # Of a row that holds infinity nothing is left, and of all others everything.
            x = x[np.isfinite(x).all(axis=-1)]
        wanted.append((x.astype(np.float64) @ weight).reshape(-1, weight.shape[1]))
        got.append((_quantized(x, per_token) @ integers).reshape(-1, weight.shape[1]))
    want, have = np.concatenate(wanted), np.concatenate(got)
    reference = float(np.square(want).mean())
    error = float(np.square(want - have).mean())
    return (error / reference) ** 0.5 if reference else float(error > 0)


def _quantized(x: np.ndarray, per_token: bool) -> np.ndarray:
    """DynamicQuantizeLinear and back, by ONNX's text: f32 scale, zero point rounded and clipped."""
    if not x.size:
        return x.astype(np.float64)
    if per_token:
        rows = [_quantized(row, False) for row in x.reshape(-1, x.shape[-1])]
        return np.stack(rows).reshape(x.shape)
    low, high = np.float32(min(0, x.min())), np.float32(max(0, x.max()))
    scale = (high - low) / np.float32(255)
    if not scale:
        return np.zeros(x.shape)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    integers = np.clip(np.rint(x / scale) + zero, 0, 255)
    return (integers - zero).astype(np.float64) * np.float64(scale)


def check_tables(before: Graph, after: Graph, report: PassReport) -> None:
    """Each table's stated error is what its rows lost."""
    stated = {n.layer.removeprefix("@"): n.error for n in report.notes if n.layer}
    for name, value in before.constants.items():
        now = after.constants.get(name)
        if (
            now is None
            or not isinstance(now.encoding, Affine)
            or isinstance(value.encoding, Affine)
        ):
            continue
        dense, lost = value.numpy().astype(np.float64), now.numpy().astype(np.float64)
        norm = float(np.sqrt(np.square(dense).sum()))
        error = float(np.sqrt(np.square(dense - lost).sum())) / norm if norm else 0.0
        assert error <= (stated[name] or 0.0) * 1.01 + 1e-4
        assert isinstance(value.type, TensorType)


def check_weights(
    case: Case, before: Graph, after: Graph, report: PassReport, calibrated: bool
) -> None:
    """Each weight's stated error is what its layers' outputs lost on calibration, else what it lost itself,
    and within the limit."""
    assert report.rewrites == len(report.changed)
    dense, held = (
        {v.name: v for g in graph.all_graphs() for v in g.constants.values()}
        for graph in (before, after)
    )
    for name, (_, stated) in report.changed.items():
        assert stated is not None
        assert stated <= LIMIT
        assert isinstance(held[name].encoding.unmasked, Affine)  # type: ignore[union-attr]
        readers = [n for n in before.nodes if before.constants[name] in n.inputs]
        lost = [_lost(case, before, name, n, held[name]) for n in readers] if calibrated else []
        numbers = [error for error in lost if error is not None]
        # Of layers that give no number on calibration it says nothing.
        error = max(numbers, default=relative_error(dense[name].numpy(), held[name].numpy()))
        assert error == pytest.approx(stated, rel=1e-6, abs=1e-9), (name, error, stated)


def _lost(case: Case, before: Graph, name: str, node: Node, held: Value) -> float | None:
    """What one layer's output loses where it reads ``held`` in place of the constant."""
    made = []
    for changed in (False, True):
        copy = before.copy()
        mine = next(n for n in copy.nodes if n.output.name == node.output.name)
        if changed:
            assert held.encoding is not None
            other = copy.constant(held.encoding)
            for i, value in enumerate(mine.inputs):
                if value is copy.constants[name]:
                    copy.set_input(mine, i, other)
        copy.set_outputs([mine.output], ["y"])
        made.append(evaluate(copy, case.feeds[0])["y"])
    finite = np.isfinite(made[0])
    return relative_error(made[0][finite], made[1][finite]) if finite.any() else None
