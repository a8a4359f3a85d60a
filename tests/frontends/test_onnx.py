"""The ONNX frontend: old and new opsets, functions, external data, scopes, and a round trip."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from tersor.errors import InvalidModel, Unsupported
from tersor.frontends.onnx import (
    export_graphsurgeon,
    export_model,
    import_graphsurgeon,
    import_model,
)
from tersor.ir import Graph, parse, print_graph
from tersor.ops import IR_OPSET, TABLE
from tersor.ops.evaluate import evaluate
from tersor.passes import optimization
from tersor.pipeline import Pipeline

ORT_OPSET = (
    24  # The newest that ONNX Runtime 1.31 takes without a warning; the tests need no newer.
)


def text(body: str, opset: int = 17, ir: int = 8) -> ModelProto:
    """A model from ONNX's text form: ``(float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }``."""
    return parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> g {body}')


def run(model: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def feeds_of(model: ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    initializers = {t.name for t in model.graph.initializer}
    return {
        i.name: rng.standard_normal([d.dim_value for d in i.type.tensor_type.shape.dim], np.float32)
        for i in model.graph.input
        if i.name not in initializers
    }


def check(model: ModelProto) -> Graph:
    """The imported graph and the exported model compute what ONNX Runtime computes for the file."""
    graph, feeds = import_model(model), feeds_of(model)
    expected = run(model, feeds)
    results = [run(export_model(graph), feeds)]
    rows = [TABLE.get(n.op) for n in graph.walk()]
    if all(row is not None and row.torch is not None for row in rows):
        results.append(list(evaluate(graph, feeds).values()))
    for got in results:
        for a, b in zip(expected, got, strict=True):
            # Two implementations of short float32 sums.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return graph


def optimized(graph: Graph) -> Graph:
    return Pipeline(optimization(), level="text").run(graph)


# -- names of dims ---------------------------------------------------------------------------------


def turned(dims: list[str | int], values: tuple[str | int, ...] = ()) -> ModelProto:
    """y = x reshaped to x's shape with the first two dims exchanged, plus b."""

    def info(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    perm = numpy_helper.from_array(np.array([1, 0, 2]), "perm")
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "perm"], ["t"]),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        helper.make_node("Add", ["r", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("x", dims), info("b", dims)], [info("y", dims)], [perm],
        value_info=[info("r", dims)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "names",
    [("-1", "-1"), ("0", "3"), ("1", "1"), ("N", "N"), ("None", "None"), ("?", "?"), ("a b", "a b")],
)  # fmt: skip
def test_dims_with_uninformative_names_are_open(names: tuple[str, str]) -> None:
    model = turned([*names, 4])
    graph = optimized(import_model(model))
    exported = export_model(graph)
    for sizes in ((2, 3), (3, 3), (1, 4)):
        x = np.arange(4 * sizes[0] * sizes[1], dtype=np.float32).reshape(*sizes, 4)
        feeds = {"x": x, "b": np.ones((*sizes[::-1], 4), np.float32)}
        np.testing.assert_array_equal(run(exported, feeds), run(model, feeds))


def test_a_name_that_occurs_once_per_input_is_one_symbol() -> None:
    graph = import_model(
        text("(float[N, 4] x, float[N] m) => (float[N, 4] y) { y = Identity (x) }")
    )
    x, m = (v.tensor.dims for v in graph.inputs)
    assert x is not None and m is not None and x[0] == m[0]


def test_a_repeated_name_among_others_is_one_symbol() -> None:
    graph = import_model(
        text("(float[b, s, s] x, float[b, s] m) => (float[b, s, s] y) { y = Identity (x) }")
    )
    x, m = (v.tensor.dims for v in graph.inputs)
    assert x is not None and m is not None and x[1] == x[2] == m[1]


# -- opsets ----------------------------------------------------------------------------------------

OLD_FORMS = {
    "softmax of a flattened matrix": (11, "(float[2,3,4] x) => (float[2,3,4] y) { y = Softmax <axis = 1> (x) }"),
    "softmax of the last axis": (11, "(float[2,3] x) => (float[2,3] y) { y = Softmax (x) }"),
    "log softmax": (11, "(float[2,3,4] x) => (float[2,3,4] y) { y = LogSoftmax <axis = 1> (x) }"),
    "hardmax": (11, "(float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax <axis = 2> (x) }"),
    "sum over axes": (11, "(float[2,3,4] x) => (float[2,1,1] y) { y = ReduceSum <axes = [1, 2]> (x) }"),
    "mean over axes": (13, "(float[2,3,4] x) => (float[2,4] y) { y = ReduceMean <axes = [1], keepdims = 0> (x) }"),
    "largest over axes": (17, "(float[2,3,4] x) => (float[2,3,1] y) { y = ReduceMax <axes = [-1]> (x) }"),
    "norm over axes": (11, "(float[2,3,4] x) => (float[2,3,1] y) { y = ReduceL2 <axes = [2]> (x) }"),
    "squeeze": (11, "(float[2,1,4] x) => (float[2,4] y) { y = Squeeze <axes = [1]> (x) }"),
    "unsqueeze": (11, "(float[2,4] x) => (float[1,2,4,1] y) { y = Unsqueeze <axes = [0, 3]> (x) }"),
    "split by sizes": (11, "(float[2,6] x) => (float[2,2] y, float[2,4] z) { y, z = Split <axis = 1, split = [2, 4]> (x) }"),
    "split in equal parts": (13, "(float[2,6] x) => (float[2,3] y, float[2,3] z) { y, z = Split <axis = 1> (x) }"),
    "dropout": (11, "(float[2,3] x) => (float[2,3] y) { y = Dropout <ratio = 0.5> (x) }"),
    "dropout with its operand": (12, "(float[2,3] x) => (float[2,3] y) { r = Constant <value_float = 0.5> () y = Dropout (x, r) }"),
    "clip": (11, "(float[2,3] x) => (float[2,3] y) { h = Constant <value = float {0.3}> () y = Clip (x, , h) }"),
    "group norm by groups": (18, "(float[2,4,3] x, float[2] s, float[2] b) => (float[2,4,3] y) { y = GroupNormalization <num_groups = 2> (x, s, b) }"),
    "grid sample": (16, "(float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { y = GridSample <mode = \"bilinear\"> (x, g) }"),
    "batch norm": (11, "(float[2,3,4] x, float[3] s, float[3] b, float[3] m) => (float[2,3,4] y) { v = Constant <value = float[3] {1.0, 2.0, 3.0}> () y = BatchNormalization (x, s, b, m, v) }"),
}  # fmt: skip


@pytest.mark.parametrize("form", OLD_FORMS)
def test_older_forms_keep_their_meaning(form: str) -> None:
    opset, body = OLD_FORMS[form]
    check(text(body, opset))


# Ops that the table has no row for, at the opset of the file -> the opset that is stamped.
WITHOUT_A_ROW = {
    "regions, unaligned": (10, 17, "(float[1,2,6,6] x, float[1,4] r) => (float[1,2,2,2] y) { i = Constant <value = int64[1] {0}> () y = RoiAlign <output_height = 2, output_width = 2> (x, r, i) }"),
    "regions": (16, 17, "(float[1,2,6,6] x, float[1,4] r) => (float[1,2,2,2] y) { i = Constant <value = int64[1] {0}> () y = RoiAlign <output_height = 2, output_width = 2> (x, r, i) }"),
    "the largest of regions": (16, 17, "(float[1,2,6,6] x) => (float[1,2,2,2] y) { r = Constant <value = float[1,5] {0.0, 0.0, 0.0, 4.0, 4.0}> () y = MaxRoiPool <pooled_shape = [2, 2]> (x, r) }"),
    "determinant": (11, 17, "(float[2,3,3] x) => (float[2] y) { y = Det (x) }"),
    "response norm": (13, 17, "(float[1,4,3,3] x) => (float[1,4,3,3] y) { y = LRN <size = 3> (x) }"),
    "mean and variance": (13, 17, "(float[1,4,3,3] x) => (float[1,4,3,3] y) { y = MeanVarianceNormalization (x) }"),
    "grid sample": (16, 20, "(float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { y = GridSample (x, g) }"),
    "columns to an image": (18, 18, "(float[1,4,4] x) => (float[1,1,3,3] y) { s = Constant <value = int64[2] {3, 3}> () b = Constant <value = int64[2] {2, 2}> () y = Col2Im (x, s, b) }"),
    "deformed": (19, 19, "(float[1,1,3,3] x, float[1,1,2,2] w, float[1,8,2,2] o) => (float[1,1,2,2] y) { y = DeformConv <kernel_shape = [2, 2]> (x, w, o) }"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_A_ROW)
def test_an_op_without_a_row_is_exported_at_its_oldest_opset(name: str) -> None:
    """Runtimes may lack the newest: ONNX Runtime has RoiAlign up to 16."""
    opset, stamped, body = WITHOUT_A_ROW[name]
    graph = check(text(body, opset))
    assert all(TABLE.get(n.op) is None for n in graph.nodes)
    assert export_model(graph).opset_import[0].version == stamped


@pytest.mark.parametrize("opset", range(11, ORT_OPSET + 1))
def test_every_opset_is_read(opset: int) -> None:
    body = """(float[3,4] x, float[4,5] w, float[5] b) => (float[3,5] y)
        { h = MatMul (x, w)  s = Add (h, b)  r = Relu (s)  y = Softmax <axis = -1> (r) }"""
    check(text(body, opset))


def test_the_newest_opset_is_read() -> None:
    graph = import_model(text("(float[3] x) => (float[3] y) { y = Relu (x) }", IR_OPSET))
    assert [n.op for n in graph.nodes] == ["Relu"]


def test_an_unknown_newer_opset_is_refused() -> None:
    model = text("(float[3] x) => (float[3] y) { y = Relu (x) }")
    model.opset_import[0].version = IR_OPSET + 1
    with pytest.raises(Unsupported) as error:
        import_model(model)
    assert str(error.value) == (
        f"opset {IR_OPSET + 1} is newer than {IR_OPSET}: export the model at that or below"
    )


# -- what files hold -------------------------------------------------------------------------------


def test_constants_in_all_their_forms() -> None:
    body = """(float[3] x) => (float[3] y, int64[2] i, float[2] f) {
        c = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
        one = Constant <value_float = 2.0> ()
        i = Constant <value_ints = [4, 5]> ()
        f = Constant <value_floats = [0.5, 1.5]> ()
        s = Mul (x, one)
        y = Add (s, c)
    }"""
    check(text(body))


def test_sparse_constants_become_dense() -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "w"),
        numpy_helper.from_array(np.array([1, 5], np.int64)),
        [2, 3],
    )
    model = text("(float[2,3] x) => (float[2,3] y) { y = Add (x, w) }")
    model.graph.sparse_initializer.append(sparse)
    (constant,) = import_model(model).constants.values()
    np.testing.assert_array_equal(constant.numpy(), [[0, 1, 0], [0, 0, 2]])


def test_an_input_that_is_an_initializer_is_a_constant() -> None:
    model = text("(float[2] x, float[2] w) => (float[2] y) { y = Add (x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    graph = import_model(model)
    assert [v.name for v in graph.inputs] == ["x"] and "w" in graph.constants
    check(model)


def test_nodes_in_any_order_are_sorted() -> None:
    model = text("(float[2] x) => (float[2] y) { a = Relu (x)  b = Neg (a)  y = Exp (b) }")
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    assert [n.op for n in import_model(model).nodes] == ["Relu", "Neg", "Exp"]


def test_open_dims_of_inputs_are_distinct_symbols() -> None:
    model = text("(float[N, ?] x, float[N, M] z) => (float[N, M] y) { y = Relu (z) }")
    graph = import_model(model)
    assert [str(v.type) for v in graph.inputs] == ["f32[N, x_dim1]", "f32[N, M]"]


FUNCTION = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
g (float[2] x) => (float[2] y) { h = local.twice (x)  y = local.twice (h) }
<domain: "local", opset_import: ["": 17]> twice (a) => (b) { b = Add (a, a) }
"""


def test_functions_are_inlined() -> None:
    graph = check(parser.parse_model(FUNCTION))
    assert [n.op for n in graph.nodes] == ["Add", "Add"]


def test_control_flow_keeps_its_bodies() -> None:
    body = """(float[2] x) => (float[2] y) {
        s = ReduceSum <keepdims = 0> (x)
        zero = Constant <value = float {0.0}> ()
        c = Greater (s, zero)
        y = If (c) <then_branch = a () => (float[2] t) { t = Relu (x) },
                    else_branch = b () => (float[2] e) { e = Neg (x) }>
    }"""
    graph = check(text(body))
    assert sum(1 for n in graph.walk() if n.op in ("Relu", "Neg")) == 2


def test_opaque_ops_are_not_changed() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "my.ops": 3]>
        g (float[2] x) => (float[2] y) { h = my.ops.Magic <power = 3> (x)  y = Relu (h) }"""
    )
    graph = import_model(model)
    assert [n.op for n in graph.nodes] == ["my.ops.Magic", "Relu"]
    (magic, _) = export_model(graph).graph.node
    assert (magic.domain, magic.op_type, magic.attribute[0].i) == ("my.ops", "Magic", 3)


# -- external data ---------------------------------------------------------------------------------


def external(folder: Path, **entries: object) -> Path:
    """A model whose 1 MiB weight is in ``weights.bin``, with changed ``external_data`` entries."""
    weight = np.arange(1 << 18, dtype=np.float32).reshape(512, 512)
    (folder / "weights.bin").write_bytes(b"\0" * 64 + weight.tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=weight.shape)
    tensor.data_location = TensorProto.EXTERNAL
    record = {"location": "weights.bin", "offset": 64, "length": weight.nbytes, **entries}
    for key, value in record.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    model = text("(float[2,512] x) => (float[2,512] y) { y = MatMul (x, w) }")
    model.graph.initializer.append(tensor)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_mapped_and_not_read(tmp_path: Path) -> None:
    graph = import_model(external(tmp_path))
    data = graph.constants["w"].numpy()
    assert isinstance(data, np.memmap) or isinstance(data.base, np.memmap)
    assert data[1, 2] == 514.0


def test_the_length_of_external_data_follows_from_its_dims(tmp_path: Path) -> None:
    graph = import_model(external(tmp_path, length=None))
    assert graph.constants["w"].numpy()[511, 511] == (1 << 18) - 1


# -- fusion of older exports -----------------------------------------------------------------------


def weight(name: str, *dims: int, seed: int = 0) -> TensorProto:
    data = np.random.default_rng(seed + len(name)).standard_normal(dims).astype(np.float32)
    return numpy_helper.from_array(data, name)


@pytest.mark.parametrize("square", ["Pow (d, two)", "Mul (d, d)"])
def test_layer_norm_written_out_is_fused(square: str) -> None:
    model = text(
        f"""(float[2,3,8] x) => (float[2,3,8] y) {{
            two = Constant <value = float {{2.0}}> ()  eps = Constant <value = float {{1e-5}}> ()
            m = ReduceMean <axes = [-1]> (x)  d = Sub (x, m)  q = {square}
            v = ReduceMean <axes = [-1]> (q)  e = Add (v, eps)  s = Sqrt (e)
            n = Div (d, s)  p = Mul (n, w)  y = Add (p, b)
        }}""",
        opset=12,
    )
    model.graph.initializer.extend([weight("w", 8), weight("b", 8)])
    graph = check(model)
    assert [n.op for n in optimized(graph).nodes] == ["LayerNormalization"]


@pytest.mark.parametrize(
    "body",
    [
        "i = Div (x, r)  e = Erf (i)  s = Add (e, one)  p = Mul (x, s)  y = Mul (p, half)",
        "h = Mul (x, half)  i = Div (x, r)  e = Erf (i)  s = Add (one, e)  y = Mul (h, s)",
    ],
)
def test_gelu_by_erf_is_fused(body: str) -> None:
    constants = """one = Constant <value = float {1.0}> ()  half = Constant <value = float {0.5}> ()
        r = Constant <value = float {1.4142135}> ()"""
    graph = check(text(f"(float[2,8] x) => (float[2,8] y) {{ {constants} {body} }}", opset=11))
    assert [n.op for n in optimized(graph).nodes] == ["Gelu"]


@pytest.mark.slow
def test_a_bert_of_the_torchscript_exporter_is_fused(tmp_path: Path) -> None:
    import torch
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        vocab_size=50, max_position_embeddings=32, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    bert = transformers.BertModel(config, add_pooling_layer=False)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[no-any-return]

    module = Encoder().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:  # Scales of 1 and biases of 0 would fold away.
                parameter.add_(0.1 * torch.randn_like(parameter))
    ids, mask = torch.randint(2, 50, (3, 13)), torch.ones((3, 13), dtype=torch.long)
    path = tmp_path / "bert.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # That exporter is deprecated, which is why files of it abound.
        torch.onnx.export(
            module, (ids, mask), str(path), dynamo=False, input_names=["ids", "mask"],
            output_names=["y"], opset_version=14,
            dynamic_axes={n: {0: "batch", 1: "length"} for n in ("ids", "mask")},
        )  # fmt: skip
    graph = optimized(import_model(path))
    counts = Counter(n.op for n in graph.nodes)
    assert counts["Attention"] == 2 and counts["tersor.AddLayerNormalization"] == 4
    assert counts["tersor.EmbeddingLayerNormalization"] == 1 and counts["tersor.Linear"] == 12
    assert counts["MatMul"] == counts["Softmax"] == counts["Erf"] == 0
    feeds = {"ids": np.full((2, 7), 3), "mask": np.array([[1] * 7, [1] * 4 + [0] * 3])}
    with torch.no_grad():
        expected = module(*(torch.from_numpy(v) for v in feeds.values())).numpy()
    # Two layers of float32 of magnitude 1.
    np.testing.assert_allclose(evaluate(graph, feeds)["y"], expected, atol=1e-5)


# -- round trips -----------------------------------------------------------------------------------


def mlp() -> ModelProto:
    model = text(
        """(float[2,4] x) => (float[2,3] y) {
            h = MatMul (x, w)  r = Relu (h)  y = Gemm <transB = 1, alpha = 0.5> (r, v, b)
        }"""
    )
    weights = [weight("w", 4, 5), weight("v", 3, 5, seed=1), weight("b", 3, seed=2)]
    model.graph.initializer.extend(weights)
    return model


def test_an_exported_graph_is_imported_unchanged() -> None:
    graph = check(mlp())
    again = import_model(export_model(graph))
    # Nodes get names on the way out, which the file did not have.
    first, second = (re.sub(r' name "[^"]*"', "", print_graph(g)) for g in (graph, again))
    assert first == second


def test_scopes_survive_a_round_trip() -> None:
    graph = import_model(mlp())
    for node, scope in zip(
        graph.nodes, ("encoder.layer.0", "encoder.layer.0.act", "head"), strict=True
    ):
        node.scope = scope
    again = import_model(export_model(graph))
    assert [n.scope for n in again.nodes] == [n.scope for n in graph.nodes]


@pytest.mark.parametrize(
    ("key", "value", "scope"),
    [
        ("pkg.torch.onnx.name_scopes", "['', 'encoder', 'encoder.layer.0', 'linear']", "encoder.layer.0"),
        ("pkg.torch.onnx.name_scopes", "['_empty_nn_module_stack_from_metadata_hook', 'add']", ""),
        ("namespace", ": Model/encoder: Encoder/encoder.layer.0: Layer/linear: aten.linear", "encoder.layer.0"),
        ("namespace", "encoder.layer.0", "encoder.layer.0"),
    ],
)  # fmt: skip
def test_scopes_are_read_as_exporters_write_them(key: str, value: str, scope: str) -> None:
    model = mlp()
    model.graph.node[0].metadata_props.add(key=key, value=value)
    assert next(import_model(model).nodes).scope == scope


def test_scopes_are_read_from_node_names() -> None:
    model = mlp()
    model.graph.node[0].name = "/encoder/layer.0/query/MatMul"
    assert next(import_model(model).nodes).scope == "encoder.layer.0.query"


def test_metadata_of_the_model_survives() -> None:
    model = mlp()
    model.metadata_props.add(key="author", value="someone")
    again = export_model(import_model(model))
    assert {e.key: e.value for e in again.metadata_props}["author"] == "someone"


# -- graphsurgeon ----------------------------------------------------------------------------------


def test_graphs_of_graphsurgeon_are_imported() -> None:
    x = gs.Variable("x", np.float32, ("batch", 4))
    y = gs.Variable("y", np.float32, ("batch", 3))
    w = gs.Constant("w", np.arange(12, dtype=np.float32).reshape(4, 3))
    surgeon = gs.Graph(
        [gs.Node("MatMul", "product", inputs=[x, w], outputs=[y])], [x], [y], opset=17
    )
    graph = import_graphsurgeon(surgeon)
    feeds = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_array_equal(evaluate(graph, feeds)["y"], feeds["x"] @ w.values)
    assert len(surgeon.nodes) == 1


def test_graphs_go_to_graphsurgeon_to_be_edited_and_back() -> None:
    model = mlp()
    surgeon = export_graphsurgeon(import_model(model))
    assert [n.op for n in surgeon.nodes] == ["MatMul", "Relu", "Gemm"]
    surgeon.nodes[1].op = "Tanh"
    edited = import_graphsurgeon(surgeon)
    for node in model.graph.node:
        node.op_type = "Tanh" if node.op_type == "Relu" else node.op_type
    feeds = feeds_of(model)
    # Sums of five products in two implementations.
    np.testing.assert_allclose(evaluate(edited, feeds)["y"], run(model, feeds)[0], rtol=1e-5)


def test_a_graph_that_graphsurgeon_cannot_export_is_refused() -> None:
    surgeon = gs.Graph(
        [gs.Node("Relu", "r", {"odd": object()}, [], [gs.Variable("y")])], name="bad"
    )
    with pytest.raises(InvalidModel, match="graph 'bad': graphsurgeon cannot export it: "):
        import_graphsurgeon(surgeon)


def test_the_protobuf_is_not_changed() -> None:
    model = parser.parse_model(FUNCTION)
    before = model.SerializeToString(deterministic=True)
    import_model(model)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(model)


def test_an_input_that_is_also_an_output_keeps_its_name() -> None:
    """Found by fuzzing: listed a second time, it was copied under the name that it has."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y, float[2] x) { y = Identity (x) }'
    )
    once = import_model(model)
    optimized = Pipeline(optimization()).run(once)
    again = import_model(export_model(optimized))
    assert again.output_names == ["y", "x"]
    assert again.outputs[1] is again.inputs[0]


def test_an_output_with_the_name_of_another_input_is_refused() -> None:
    graph = parse("graph g(%x: f32[2]) -> (x = %y) {\n %y: f32[2] = Relu(%x)\n}", TABLE)
    with pytest.raises(Unsupported, match="output 'x' has the name of an input"):
        export_model(graph)


def test_empty_operands_at_the_end_are_not_written() -> None:
    """Found by random graphs: ONNX Runtime's fusion of embeddings crashes on the empty name."""
    graph = parse(
        "graph g(%x: f32[2, 4]) -> (y = %y) {\n @w: f32[4] = dense normal(0)\n"
        " %y: f32[2, 4] = LayerNormalization(%x, @w, _)\n}",
        TABLE,
    )
    assert list(export_model(graph).graph.node[0].input) == ["x", "w"]
