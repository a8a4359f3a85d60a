"""What contract tests share: the runs that judge samples of the op table, and dims to give operands."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from tersor.backends.ort.lower import lower
from tersor.frontends.onnx.exporter import export_model
from tersor.ir import Dim, Graph, symbol
from tersor.ops.samples import Case
from tersor.target import Target

# Ops, or samples of theirs, that ONNX Runtime's CPU provider refuses: ONNX's reference implementation
# judges these.
REFERENCE = {
    "Attention-1": "inconsistent q_sequence_length",  # the mask broadcasts along the queries
}


def by_reference(case: Case) -> bool:
    """Whether ONNX's reference implementation judges a case."""
    return case.name in REFERENCE or case.row.op in REFERENCE


def run_in_onnx(graph: Graph, inputs: dict[str, np.ndarray], reference: bool) -> list[np.ndarray]:
    """A graph's outputs by ONNX Runtime, not optimized, or by ONNX's reference implementation."""
    model = export_model(lower(graph) if _is_ours(graph) else graph)
    if reference:
        return list(ReferenceEvaluator(model).run(None, inputs))
    options = ort.SessionOptions()
    # The op's own kernel is to run, not what the optimizer makes of it.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, inputs))


Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def compiled_in_tvm(*graphs: Graph, kernels: bool = False) -> list[Run]:
    """What runs each of ``graphs`` as its nodes are lowered to in TVM; where not asked for, no kernel takes
    their place. One module for all, compiled for this machine: most of the time goes to a module, not to its
    nodes."""
    import tvm

    from tersor.backends.tvm import fuse, module, ops, pipeline
    from tersor.backends.tvm.kernels.emit import Isa
    from tersor.backends.tvm.ops import fused

    isa = Isa.of(Target.host().features, threads=1)
    rules = {**ops.RULES, **fused.rules(isa)} if kernels else ops.RULES
    lowered = module.lower_all([fuse.fuse(g, isa) if kernels else g for g in graphs], rules)
    target = pipeline.tvm_target(Target.host().features, cores=1)
    executable = pipeline.compile_module(lowered.module, target)
    machine = tvm.relax.VirtualMachine(executable, tvm.cpu())

    def runner(place: int) -> Run:
        graph, function = graphs[place], machine[module.function_name(place)]
        weights = [lowered.arrays[i] for i in lowered.parameters[place]]

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            given = [inputs[value.name] for value in graph.inputs] + weights
            made = function(*(tvm.runtime.tensor(np.array(a, order="C")) for a in given))
            return [tensor.numpy() for tensor in made]

        return run

    return [runner(place) for place in range(len(graphs))]


def run_in_tvm(graph: Graph, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """A graph's outputs by what its nodes are lowered to in TVM."""
    (run,) = compiled_in_tvm(graph)
    return run(inputs)


def _is_ours(graph: Graph) -> bool:
    return any(node.op.startswith("tersor.") for node in graph.walk())


def assert_agrees(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """Equal types and shapes; floats within ``tolerance``, relative and absolute at once, others equal."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if got.dtype.kind == "f":
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(got, want)


def static(index: int, shape: tuple[int, ...]) -> tuple[Dim, ...]:
    return shape


def batch(index: int, shape: tuple[int, ...]) -> tuple[Dim, ...]:
    return tuple(symbol(f"n{d}") if i == 0 and d > 1 else d for i, d in enumerate(shape))


def by_size(index: int, shape: tuple[int, ...]) -> tuple[Dim, ...]:
    """Equal sizes are one symbol, as an exporter writes them."""
    return tuple(symbol(f"n{d}") if d > 1 else d for d in shape)


def each_its_own(index: int, shape: tuple[int, ...]) -> tuple[Dim, ...]:
    return tuple(symbol(f"x{index}_{i}_{d}") if d > 1 else d for i, d in enumerate(shape))
