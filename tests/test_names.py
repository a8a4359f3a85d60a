"""A model may call things as we do: nothing of ours is found by a name, and no two things become one."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tersor import compile
from tersor.errors import Unsupported
from tersor.frontends.onnx import import_model
from tersor.frontends.torch import import_module
from tersor.ir import parse
from tersor.ops import TABLE
from tersor.pipeline import registry
from tersor.tuning.measure import Bench

F = np.float32
Arrays = dict[str, np.ndarray]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng().standard_normal(shape).astype(F)


def model(nodes: list[onnx.NodeProto], inputs: dict[str, list[object]], held: Arrays) -> bytes:
    """Of float inputs (int64 where called ids) and one output y."""
    infos = [
        helper.make_tensor_value_info(
            name, TensorProto.INT64 if name == "ids" else TensorProto.FLOAT, dims
        )
        for name, dims in inputs.items()
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", infos, [y], constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("tvm", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return made


def plain(data: bytes, feed: Arrays) -> np.ndarray:
    """y of the model as it is, by ONNX Runtime without its optimizer."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feed)[0])


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


# One step of the coarsest 8-bit scale here is a 120th of a row's largest: sums are well within 5%.
INT8 = 0.05


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", ["w_scale", "w_quantized", "w_zero_point"])
def test_weights_beside_constants_called_like_their_parts(name: str, portable: bool) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Mul", ["p", name], ["y"]),
    ]
    held = {"w": normal(96, 64), name: np.linspace(50, 60, 64, dtype=F)}
    data, x = model(nodes, {"x": ["n", 96]}, held), normal(9, 96)
    made = compile(data, recipe="int8", portable=portable, measure=False)
    assert relative(made.run({"x": x})["y"], plain(data, {"x": x})) < INT8


@pytest.mark.parametrize("name", ["table_scale", "table_quantized"])
def test_tables_beside_tables_called_like_their_parts(name: str) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("Gather", [name, "ids"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["y"]),
    ]
    columns = 1 if name == "table_scale" else 64
    held = {"table": normal(1100, 64), name: 3 + normal(1100, columns)}
    data, ids = model(nodes, {"ids": ["n"]}, held), np.arange(0, 1100, 7)
    made = compile(data, recipe="int8", measure=False)
    assert relative(made.run({"ids": ids})["y"], plain(data, {"ids": ids})) < INT8


def test_inputs_are_measured_that_are_called_like_arguments_of_numpy() -> None:
    nodes = [helper.make_node("Add", ["file", "allow_pickle"], ["y"])]
    data = model(nodes, {"file": [2], "allow_pickle": [2]}, {})
    with Bench([{"file": normal(2), "allow_pickle": np.zeros(2, F)}]) as bench:
        worker = bench.start("ort", data, registry.backend("ort").Choice().to_json())
        assert (worker.outputs(0)["y"] == normal(2)).all()


def test_an_op_of_the_models_own_domain_is_none_of_ours() -> None:
    from tersor.backends.tvm.fuse import fuse
    from tersor.backends.tvm.kernels.emit import Isa

    nodes = [helper.make_node("Linear", ["x", "w"], ["y"], domain="tvm")]
    graph = import_model(model(nodes, {"x": ["n", 64]}, {"w": normal(64, 64)}))
    with pytest.raises(Unsupported, match="reserved"):
        fuse(graph, Isa(8, "widen", 1))


def test_results_named_as_inference_might_name_them() -> None:
    text = """graph main(%a!out: f32[2, 3]) -> (y = %y) {
  %a: i64[2] = ArgMax(%a!out) {axis = 1, keepdims = 0}
  %y: f32[2] = Cast(%a) {to = 1}
}"""
    graph = parse(text.replace("a!out", '"a!out"'), TABLE)
    assert str(next(graph.nodes).output.type) == "i64[2]"


def test_open_dims_are_called_like_none_of_the_file() -> None:
    """The file calls the rows of NonZero x_dim0: that is not the open dim of x."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [1, "x_dim0"])
    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    graph = import_model(helper.make_model(helper.make_graph(nodes, "g", [x], [y])))
    (rows,), (_, found) = graph.inputs[0].tensor.dims, graph.outputs[0].tensor.dims  # type: ignore[misc]
    assert str(found) == "x_dim0"
    assert rows != found


class Two(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2, y + 1


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("rows", "rows"), ("rows", "rows")),  # The user says that they are one.
        (("a-b", "a_b"), ("a_b", "a_b_1")),
        ((None, "x_dim0"), ("x_dim0_1", "x_dim0")),
    ],
)
def test_sizes_of_torch_are_one_only_where_the_user_calls_them_so(
    names: tuple[str | None, str], wanted: tuple[str, str]
) -> None:
    auto = torch.export.Dim.AUTO
    shapes = {k: {0: auto if n is None else n} for k, n in zip("xy", names, strict=True)}
    examples = {"x": torch.ones(3, 4), "y": torch.ones(5, 4)}
    graph = import_module(Two(), examples, dynamic_shapes=shapes)
    assert tuple(str(v.tensor.dims[0]) for v in graph.inputs) == wanted  # type: ignore[index]
