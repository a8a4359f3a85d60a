"""Judging passes from outside: a graph as it is against what passes made of it, both run by ONNX Runtime
with its own optimizer off.

What judges must be sure of itself: graphs that ONNX Runtime does not run, or on which ONNX's reference
implementation disagrees with it, are not judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from strategies import SIZES, Builder, Case, Rejected

from tersor.backends.ort.lower import lower
from tersor.backends.ort.options import LowerOptions
from tersor.errors import PassFailed, TersorError
from tersor.frontends.onnx import export_model, import_model
from tersor.ir import DType, Graph, Node, TensorType, Value, print_graph
from tersor.ops import TABLE
from tersor.ops.evaluate import evaluate_node, to_torch
from tersor.pipeline import Pass, Pipeline

Arrays = Mapping[str, Any]
LARGE = 1e4  # Above, sums cancel and exponentials overflow: nothing to judge rounding by.
PORTABLE = LowerOptions(portable=True)


class Unjudged(Exception):
    """This graph says nothing about a pass; why."""


@dataclass
class Expected:
    """What a graph gives for a feed, and how far two evaluations of it are apart, by output; ``halves``
    is what narrow floats within it may cost, relative to the largest number."""

    feed: Arrays
    outputs: Arrays
    noise: dict[str, float]
    halves: float = 0.0


# -- running ---------------------------------------------------------------------------------------


def session(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    data = model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feed: Arrays) -> dict[str, Any]:
    held = session(model)
    names = [o.name for o in held.get_outputs()]
    taken = {i.name for i in held.get_inputs()}
    return dict(
        zip(names, _run(held, names, {k: v for k, v in feed.items() if k in taken}), strict=True)
    )


def _run(held: Any, names: list[str], feed: Arrays) -> list[Any]:
    """bfloat16 goes in and out by way of OrtValues, which numpy has no type for."""
    if not any(np.asarray(v).dtype == ml_dtypes.bfloat16 for v in feed.values()) and not any(
        "bfloat16" in o.type for o in held.get_outputs()
    ):
        return list(held.run(names, feed))
    raise Unjudged("bfloat16 at the interface")


class Runner:
    """Runs one graph, opened once."""

    def __init__(self, graph: Graph, options: LowerOptions | None = PORTABLE) -> None:
        self.held = session(export_model(graph if options is None else lower(graph, options)))
        self.names = [o.name for o in self.held.get_outputs()]
        self.taken = {i.name for i in self.held.get_inputs()}

    def __call__(self, feed: Arrays) -> dict[str, Any]:
        given = {k: v for k, v in feed.items() if k in self.taken}
        return dict(zip(self.names, _run(self.held, self.names, given), strict=True))


# -- what is expected ------------------------------------------------------------------------------


def expected(case: Case) -> list[Expected]:
    """Outputs of the graph as it is, for those of the case's feeds that it runs on.

    Raises:
        Unjudged: ONNX Runtime does not run it, or the reference implementation says otherwise.
    """
    model = export_model(case.graph)
    try:
        runner = Runner(case.graph, None)
        first = runner(case.feed)
        halves = _halves(case.graph)
    except Unjudged:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base of theirs.
        raise Unjudged(f"ONNX Runtime: {str(error).splitlines()[0][:60]}") from None
    found = [Expected(case.feed, first, _noise(model, case.feed, first), halves)]
    for feed in case.feeds[1:]:
        try:
            outputs = runner(feed)
            found.append(Expected(feed, outputs, _noise(model, feed, outputs), halves))
        except Exception:  # Sizes that some constant of the graph rules out.
            continue
    return found


def _noise(model: onnx.ModelProto, feed: Arrays, outputs: Arrays) -> dict[str, float]:
    """How far ONNX's reference implementation is from ``outputs``; 0 where it cannot run the model.

    Raises:
        Unjudged: too far.
    """
    try:
        with np.errstate(all="ignore"):
            made = dict(zip(outputs, ReferenceEvaluator(model).run(None, dict(feed)), strict=True))
    except Exception:
        return dict.fromkeys(outputs, 0.0)
    noise = {}
    for name, want in outputs.items():
        if not isinstance(want, np.ndarray):
            continue
        error, scale = difference(want, np.asarray(made[name]))
        if error > _rounding(want.dtype) * 100 * scale:
            raise Unjudged("ONNX Runtime and the reference disagree")
        noise[name] = error
    return noise


# -- comparing -------------------------------------------------------------------------------------


def difference(want: Any, got: Any) -> tuple[float, float]:
    """(Largest absolute difference, the largest finite magnitude of ``want`` or 1). Infinite where
    dtype, shape, an integer or what is finite differ; where ``want`` is NaN anything will do."""
    if want.dtype != got.dtype or want.shape != got.shape:
        return float("inf"), 1.0
    if want.dtype.kind not in "fcV":
        return (0.0 if np.array_equal(want, got) else float("inf")), 1.0
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    a, b = np.asarray(want, wide), np.asarray(got, wide)
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | np.isnan(a), 0.0, np.abs(a - b))
    finite = np.abs(a[np.isfinite(a)])
    scale = max(1.0, float(finite.max(initial=0.0)))
    return (float("inf") if np.isnan(apart).any() else float(apart.max(initial=0.0))), scale


def _rounding(dtype: np.dtype) -> float:
    """What reordered arithmetic of some ops may cost, relative to the largest number."""
    if dtype.kind not in "fcV":
        return 0.0
    # Fusions keep some constants and exponents in f32: f64 is allowed no less than 1e-6.
    return max(1e-6, 100 * float(ml_dtypes.finfo(dtype).eps))  # type: ignore[no-untyped-call]


def _halves(graph: Graph) -> float:
    """Some units of the coarsest float narrower than f32 that the graph computes with: evaluated
    elsewhere (folded), it is rounded elsewhere, and a float32 output made of it shows that."""
    types = {
        value.type.dtype.numpy
        for owner in graph.all_graphs()
        for value in owner.values()
        if isinstance(value.type, TensorType) and value.type.dtype.is_float
    }
    narrow = [float(ml_dtypes.finfo(t).eps) for t in types if t.itemsize < 4]  # type: ignore[no-untyped-call]
    return 8 * max(narrow, default=0.0)


def complaint(wanted: Sequence[Expected], graph: Graph, options: LowerOptions = PORTABLE) -> str:
    """What ``graph`` gives otherwise than wanted; empty if nothing."""
    try:
        runner = Runner(graph, options)
    except TersorError as error:
        return f"it cannot be lowered: {error}"
    except Exception as error:
        return f"ONNX Runtime refuses it: {str(error)[:300]}"
    for want in wanted:
        try:
            got = runner(want.feed)
        except Exception as error:
            shapes = {k: v.shape for k, v in want.feed.items()}
            return f"it does not run at {shapes}: {str(error)[:300]}"
        for name, array in want.outputs.items():
            if not isinstance(array, np.ndarray):
                continue
            error_, scale = difference(array, got[name])
            # Two evaluations of the same graph that are apart tell how much rounding it amplifies.
            rounding = _rounding(array.dtype)
            if array.dtype.kind in "fcV":
                rounding = max(rounding, want.halves)
            allowed = rounding * scale + 50 * want.noise.get(name, 0.0)
            if error_ > allowed:
                return f"output {name} differs by {error_:.3g} (allowed {allowed:.3g})"
    return ""


def is_lowered_otherwise(graph: Graph, options: LowerOptions) -> bool:
    """Whether ``options`` give another model than the portable one."""
    return print_graph(lower(graph, options)) != print_graph(lower(graph, PORTABLE))


def guilty(case: Case, wanted: Sequence[Expected], passes: Sequence[Pass]) -> str:
    """The first pass after which the outputs are others, and the rewrite in it."""
    graph = case.graph.copy()
    for i, step in enumerate(passes):
        after = Pipeline([step]).run(graph)
        wrong = complaint(wanted, after)
        if wrong:
            return f"pass {i}, {step.label}: {wrong}; {_rewrite(step, graph, wanted)}"
        graph = after
    return "no pass alone: the whole differs"


def _rewrite(step: Pass, graph: Graph, wanted: Sequence[Expected]) -> str:
    def evaluate(g: Graph, feed: Arrays) -> dict[str, Any]:
        return Runner(g)(feed)

    feeds = [w.feed for w in wanted]
    try:
        Pipeline([step], level="values", feeds=feeds, evaluate=evaluate).run(graph)
    except PassFailed as error:
        return str(error)
    except Exception as error:
        return f"bisection: {str(error)[:200]}"
    return "its own claim holds, on the graph that it was given"


# -- what is worth building on ---------------------------------------------------------------------


def judge(b: Builder) -> Callable[[Node], None]:
    """Rejects nodes that ONNX Runtime has no kernel for, and results that are large or not finite, for
    nothing could be said of what follows from them."""
    values: dict[Value, Any] = {}

    def check(node: Node) -> None:
        _check_kernel(node)
        _check_size(node)
        if node.graph is not b.graph:
            return
        for value in b.graph.values():
            if value in values:
                continue
            if value.encoding is not None:
                values[value] = to_torch(value.numpy())
            elif value.is_input:
                values[value] = to_torch(b.common.first[value.name])
        try:
            made = evaluate_node(node, values)
        except Exception:  # torch lacks the type, or an operand has no numbers
            return
        for value, tensor in zip(node.outputs, made, strict=False):
            values[value] = tensor
            if _is_wild(tensor):
                raise Rejected("too large")

    return check


def _is_wild(tensor: Any) -> bool:
    floats = hasattr(tensor, "is_floating_point") and tensor.is_floating_point()
    return floats and not bool((tensor.abs() < LARGE).all())


def _check_size(node: Node) -> None:
    for value in node.outputs:
        type = value.type
        if isinstance(type, TensorType) and type.dims is not None and None not in type.dims:
            try:
                numel = np.prod(type.at(SIZES), dtype=np.int64)
            except (KeyError, ZeroDivisionError):
                continue
            if numel > 4096:
                raise Rejected("too many elements")


def _check_kernel(node: Node) -> None:
    if node.subgraphs or any(
        v is not None and not isinstance(v.type, TensorType) for v in node.inputs
    ):
        return
    kinds = tuple(None if v is None else (v.type.dtype, v.is_constant) for v in node.inputs)  # type: ignore[union-attr]
    to = node.attrs.get("to")
    if not _has_kernel(node.op, kinds, to, _Probe(node)):
        raise Rejected("ONNX Runtime has no kernel for it")


class _Probe:
    """A node to try; equal to all others, so that a cache looks at the rest of its arguments."""

    def __init__(self, node: Node) -> None:
        self.node: Node = node

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Probe)


@cache
def _has_kernel(op: str, kinds: tuple[Any, ...], to: Any, probe: _Probe) -> bool:
    graph, node = TABLE.graph(), probe.node
    operands: list[Value | None] = []
    for value in node.inputs:
        if value is None:
            operands.append(None)
        elif value.encoding is not None:
            operands.append(graph.constant(value.encoding, "k"))
        else:
            operands.append(graph.add_input("x", TensorType(value.tensor.dtype, value.tensor.dims)))
    try:
        made = graph.emit_node(op, operands, node.attrs, names=[""] * len(node.outputs))
        # What fusions bring raises the opset, at which ONNX Runtime no longer takes some ops apart that
        # it has no kernel for.
        row = graph.add_input("row", TensorType(DType.F32, (4,)))
        norm = graph.emit("RMSNormalization", [row, graph.constant(np.ones(4, np.float32))])
        outputs = [*made.outputs, norm]
        graph.set_outputs(outputs, [f"y{i}" for i in range(len(outputs))])
        session(export_model(graph))
    except TersorError:
        return False
    except Exception:
        return False
    return True


# -- the way out and in ----------------------------------------------------------------------------


def check_round_trip(graph: Graph) -> None:
    """What is exported and imported twice is what is exported and imported once."""
    once = import_model(export_model(graph))
    twice = import_model(export_model(once))
    first, second = print_graph(once).splitlines(), print_graph(twice).splitlines()
    apart = [f"{a}\n{b}" for a, b in zip(first, second, strict=False) if a != b]
    assert first == second, "exported and imported again:\n" + "\n".join(apart[:3])


def interface(graph: Graph) -> list[tuple[str, DType | None]]:
    """Names and element types of inputs and outputs."""
    both = [item for side in graph.signature() for item in side]
    return [(n, t.dtype if isinstance(t, TensorType) else None) for n, t in both]
