"""Recurrences that exporters unroll, as one op: the right numbers in fewer nodes, whoever wrote them."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import unrolled
from differential import session

from tersor.backends import ort
from tersor.frontends.onnx import import_model
from tersor.frontends.torch import import_module
from tersor.ir import Graph, parse, print_graph, weights_of
from tersor.ops import TABLE
from tersor.passes import optimization
from tersor.passes.fuse.roll_recurrence import RollRecurrence
from tersor.pipeline import Pipeline

# Sums of a few products in another order, through five steps that each shrink an error.
ROUNDING = 2e-6


def exported(
    module: unrolled.Unrolled, dynamo: bool = False, fixed: bool = False
) -> onnx.ModelProto:
    """``module`` in ONNX, the batch open unless ``fixed``."""
    arguments, file = module.arguments(), io.BytesIO()
    options: dict[str, Any] = {"input_names": list(module.inputs), "dynamo": dynamo}
    if dynamo:
        batch = torch.export.Dim("b")
        options |= {"verbose": False}
        options |= {} if fixed else {"dynamic_shapes": tuple({0: batch} for _ in arguments)}
    elif not fixed:
        options["dynamic_axes"] = {name: {0: "b"} for name in module.inputs}
    torch.onnx.export(module.eval(), arguments, file, **options)
    return onnx.load_from_string(file.getvalue())


def rolled(graph: Graph) -> tuple[Graph, list[str]]:
    """The graph as every compilation begins with it, and why recurrences were left."""
    pipeline = Pipeline(optimization(), evaluate=ort.Evaluator())
    made = pipeline.run(graph)
    (report,) = (r for r in pipeline.reports if r.name == "roll-recurrence")
    return made, [skip.reason for skip in report.skips]


def judged(model: onnx.ModelProto, module: unrolled.Unrolled) -> tuple[Counter[str], list[str]]:
    """Ops after the passes, whose outputs are held against the model as it is."""
    values = [v.numpy() for v in module.arguments()]
    feed = dict(zip(module.inputs, values, strict=True))
    wanted = session(model).run(None, feed)
    graph, skips = rolled(import_model(model))
    for want, got in zip(wanted, ort.Evaluator()(graph, feed).values(), strict=True):
        assert want.shape == got.shape
        assert np.abs(want - got).max() <= ROUNDING * np.abs(want).max()
    return Counter(n.op for n in graph.walk()), skips


FORMS = {
    "torch LSTM": (lambda: unrolled.Cells("LSTM"), {"LSTM": 1}, 5),
    "torch GRU": (lambda: unrolled.Cells("GRU"), {"GRU": 1}, 5),
    "one product for all steps": (unrolled.Keras, {"LSTM": 1}, 5),
    "one weight a gate": (unrolled.PerGate, {"LSTM": 1}, 5),
    "input and state side by side": (unrolled.Concatenated, {"LSTM": 1}, 6),
    "backwards": (unrolled.Backwards, {"LSTM": 1}, 9),
    "reset before the product": (unrolled.ResetBefore, {"GRU": 1}, 7),
    "update gate of the new": (unrolled.OtherWay, {"GRU": 1}, 7),
    "two layers in turn": (unrolled.TwoLayers, {"LSTM": 2}, 6),
    "inputs made one by one": (unrolled.Apart, {"LSTM": 1}, 24),
    "a cell state in between": (unrolled.CellInBetween, {"LSTM": 2}, 11),
}


@pytest.mark.parametrize("form", FORMS)
def test_unrolled_steps_are_one_op(form: str) -> None:
    module, ops, most = FORMS[form]
    made, skips = judged(exported(module()), module())
    assert {op: made[op] for op in ("LSTM", "GRU", "RNN") if made[op]} == ops
    assert made.total() <= most and not skips
    assert not {"Sigmoid", "Tanh", "tersor.Linear"} & set(made)


# What is constant is folded by then: of the first step, a product with a state of zeros.
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_fixed_batch_has_no_step_beside_the_op(kind: str) -> None:
    module = unrolled.Cells(kind)
    made, _ = judged(exported(module, fixed=True), module)
    assert made[kind] == 1 and made.total() <= 5


def test_a_learned_first_state_that_is_folded_leaves_its_step() -> None:
    made, _ = judged(exported(unrolled.ResetBefore(), fixed=True), unrolled.ResetBefore())
    assert made["GRU"] == 1 and made["Tanh"] == 1


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_our_own_import_of_a_module_is_rolled(kind: str) -> None:
    module = unrolled.Cells(kind).eval()
    (x,) = module.arguments()
    graph, _ = rolled(import_module(module, (x,)))
    (got,) = ort.Evaluator()(graph, {graph.inputs[0].name: x.numpy()}).values()
    with torch.no_grad():
        want = module(x).numpy()
    assert np.abs(want - got).max() <= ROUNDING * np.abs(want).max()
    made = Counter(n.op for n in graph.walk())
    assert made[kind] == 1 and made.total() <= 5


@pytest.mark.sweep  # This exporter takes some seconds.
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_what_torch_exports_by_default_is_rolled(kind: str) -> None:
    module = unrolled.Cells(kind)
    made, _ = judged(exported(module, dynamo=True), module)
    assert made[kind] == 1 and made.total() <= 5


class OneAtATime(unrolled.ReluLayers):
    """Of one sequence: ONNX Runtime's RNN takes several more slowly than their steps."""

    def arguments(self) -> tuple[torch.Tensor, ...]:
        return tuple(v[:1] for v in super().arguments())


def test_simple_layers_of_one_sequence_are_one_op_each() -> None:
    made, skips = judged(exported(OneAtATime(), fixed=True), OneAtATime())
    assert made["RNN"] == 2 and made.total() <= 8 and not skips


@pytest.mark.parametrize("fixed", [False, True])
def test_simple_layers_of_several_sequences_stay(fixed: bool) -> None:
    module = unrolled.Cells("RNN")
    made, skips = judged(exported(module, fixed=fixed), module)
    assert not made["RNN"] and skips == [
        "its batch is not known to be 1, and for others an RNN is slower than its steps"
    ]


REFUSED = {
    "fed by itself": (unrolled.Fed, "the input of a step depends on the state of an earlier one"),
    "all cell states": (
        unrolled.AllCells,
        "the cell state of each step is used, and the op returns only the last",
    ),
    "other weights at each step": (unrolled.OtherWeights, None),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_no_op_does_stays(form: str) -> None:
    module, reason = REFUSED[form]
    made, skips = judged(exported(module()), module())
    assert not made["LSTM"] and skips == ([reason] if reason else [])


# -- IR text ---------------------------------------------------------------------------------------

STEP = """
  @i{t}: i64[] = dense [{t}]
  %x{t}: f32[1, 2] = Gather(%x, @i{t}) {{axis = 1}}
  %a{t}: f32[1, 3] = tersor.Linear(%x{t}, @w, @b) {{activation = "none"}}
  %b{t}: f32[1, 3] = tersor.Linear(%h{t}, @r) {{activation = "none"}}
  %s{t}: f32[1, 3] = Add(%a{t}, %b{t})
  %h{next}: f32[1, 3] = Tanh(%s{t})
"""
HEAD = """graph main(%x: f32[1, 4, 2], %h0: f32[1, 3]) -> (y = %h{steps}) {{
  @w: f32[2, 3] = dense [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
  @r: f32[3, 3] = dense [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
  @b: f32[3] = dense [0.5, 0.25, 0.125]
"""
AFTER = """graph main(%x: f32[1, 4, 2], %h0: f32[1, 3]) -> (y = %unsqueeze) {
  @i: i64[1] = dense [0]
  @e: i64[1] = dense [2]
  @a: i64[1] = dense [1]
  @z: i64[1] = dense [0]
  @units: i64[2] = dense [0, 1]
  @W: f32[1, 3, 2] = dense [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
  @R: f32[1, 3, 3] = dense [1.0, 4.0, 7.0, 2.0, 5.0, 8.0, 3.0, 6.0, 9.0]
  @B: f32[1, 6] = dense [0.5, 0.25, 0.125, 0.0, 0.0, 0.0]
  %s: f32[1, 2, 2] = Slice(%x, @i, @e, @a)
  %t: f32[2, 1, 2] = Transpose(%s) {perm = [1, 0, 2]}
  %v: f32[3] = Squeeze(%h0, @z)
  %u: f32[1, 1, 3] = Unsqueeze(%v, @units)
  %rnn: f32[2, 1, 1, 3], %last: f32[1, 1, 3] = RNN(%t, @W, @R, @B, _, %u) {hidden_size = 3}
  %squeeze: f32[3] = Squeeze(%last, @units)
  %unsqueeze: f32[1, 3] = Unsqueeze(%squeeze, @z)
}"""


def text(steps: int) -> str:
    return (
        HEAD.format(steps=steps) + "".join(STEP.format(t=t, next=t + 1) for t in range(steps)) + "}"
    )


def by_roll(source: str) -> Graph:
    return Pipeline([RollRecurrence()], level="text").run(parse(source, TABLE))


def test_two_steps_as_text() -> None:
    made = by_roll(text(2))
    assert [n.op for n in made.nodes] == [n.op for n in parse(AFTER, TABLE).nodes]
    wanted = {v.name: v.numpy() for v in parse(AFTER, TABLE).constants.values()}
    for name in "WRB":
        assert np.array_equal(made.constants[name].numpy(), wanted[name])
    feed = {v.name: np.ones(v.tensor.shape, np.float32) for v in made.inputs}
    run = ort.Evaluator()
    assert np.array_equal(run(made, feed)["y"], run(parse(AFTER, TABLE), feed)["y"])


def test_one_step_stays() -> None:
    made = by_roll(text(1))
    assert print_graph(made) == print_graph(parse(text(1), TABLE, weights_of(made)))
