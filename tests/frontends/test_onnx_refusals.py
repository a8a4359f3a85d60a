"""What is no valid ONNX model is refused in one line that says which part and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper, parser

from tersor.errors import InvalidModel, TersorError, Unsupported
from tersor.frontends.onnx import import_model

RELU = "(float[2] x) => (float[2] y) { y = Relu (x) }"


def text(body: str = RELU, opsets: str = '"": 17') -> ModelProto:
    return parser.parse_model(f"<ir_version: 8, opset_import: [{opsets}]> g {body}")


def refusal(source: object, kind: type[TersorError] = InvalidModel) -> str:
    with pytest.raises(TersorError) as error:
        import_model(source)  # type: ignore[arg-type]
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


# -- files -----------------------------------------------------------------------------------------


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    assert refusal(path) == f"{path}: No such file or directory; check the path"


def test_a_path_with_a_null_byte() -> None:
    assert refusal("a\0b") == "'a\\x00b': embedded null byte"


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: a folder; give the .onnx file in it"


def test_a_pipe_which_would_keep_its_reader_waiting(tmp_path: Path) -> None:
    path = tmp_path / "pipe.onnx"
    os.mkfifo(path)
    assert refusal(path) == f"{path}: not a regular file; copy it to one first"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty; export or download the model again"),
        (b"version https://git-lfs.github.com/spec/v1\n",
         "a Git LFS pointer, not the model: run 'git lfs pull'"),
        (b"PK\x03\x04rest",
         "a zip archive, perhaps a torch checkpoint: load it and give the module itself"),
        (b"\x80\x02rest",
         "a Python pickle, perhaps a torch checkpoint: load it and give the module itself"),
        (b"\x1f\x8brest", "compressed with gzip: unpack it first"),
        (b"\xff\xff\xff", "not an ONNX model, or truncated; export or download it again"),
        (text().SerializeToString()[:-3],
         "not an ONNX model, or truncated; export or download it again"),
        (ModelProto(ir_version=8).SerializeToString(),
         "no graph in it; not an ONNX model, or truncated"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_model(data: bytes, message: str, tmp_path: Path) -> None:
    assert refusal(data) == f"the given bytes: {message}"
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert refusal(path) == f"{path}: {message}"


def test_a_model_without_opsets() -> None:
    model = text()
    del model.opset_import[:]
    assert refusal(model) == (
        "the given model: names no opset; not a complete ONNX model, or truncated"
    )


# -- graphs ----------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, str]] = {
    "made twice": (
        "(float[2] x) => (float[2] y) { y = Relu (x)  y = Neg (x) }",
        "node Neg making 'y' makes 'y', which is made before",
    ),
    "made over an input": (
        "(float[2] x) => (float[2] x) { x = Relu (x) }",
        "node Relu making 'x' makes 'x', which is made before",
    ),
    "a cycle": (
        "(float[2] x) => (float[2] y) { a = Add (x, b)  b = Neg (a)  y = Relu (b) }",
        "node Add making 'a' is part of a cycle, or reads from one",
    ),
    "read and not made": (
        "(float[2] x) => (float[2] y) { y = Add (x, gone) }",
        "node Add making 'y' reads 'gone', which nothing makes",
    ),
    "returned and not made": (
        "(float[2] x) => (float[2] gone) { y = Relu (x) }",
        "graph output 'gone' reads 'gone', which nothing makes",
    ),
    "a constant of two values": (
        "(float[2] x) => (float[2] y) { c = Constant <value_int = 1, value_float = 2.0> () y = Relu (x) }",
        "node Constant making 'c': needs exactly one attribute, the value",
    ),
    "a constant of no value": (
        "(float[2] x) => (float[2] y) { c = Constant <number = 1> () y = Relu (x) }",
        "node Constant making 'c': has no attribute 'number'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_graphs_that_contradict_themselves(case: str) -> None:
    body, message = BROKEN[case]
    assert refusal(text(body)) == message


def test_standard_ops_without_their_opset() -> None:
    assert refusal(text(opsets='"other": 1')) == (
        "node Relu making 'y': the model imports no opset of ONNX's own ops"
    )


def test_an_attribute_that_the_op_does_not_have() -> None:
    message = refusal(text("(float[2] x) => (float[2] y) { y = Softmax <axes = 1> (x) }"))
    assert message.startswith("node Softmax making 'y': ") and "'axes'" in message


def test_operands_that_the_op_refuses() -> None:
    message = refusal(text("(float[2,3] x, float[2,3] z) => (float[2,2] y) { y = MatMul (x, z) }"))
    assert message.startswith("node MatMul making 'y': ")


def test_a_form_that_has_no_equal_today() -> None:
    model = text(
        """(float[1,1,2,2] x, float[0] r, float[4] s) => (float[1,1,4,4] y) {
            y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (x, r, s)
        }""",
        '"": 11',
    )
    assert refusal(model, Unsupported) == (
        "node Resize making 'y': Resize with coordinate_transformation_mode 'tf_half_pixel_for_nn', "
        "which ONNX dropped at opset 13: export the model at a newer opset"
    )


def test_an_attribute_of_a_kind_that_is_not_carried() -> None:
    model = text(opsets='"": 17, "other": 1')
    model.graph.node[0].domain = "other"
    model.graph.node[0].attribute.add(name="odd", type=AttributeProto.SPARSE_TENSOR)
    assert refusal(model, Unsupported) == (
        "node Relu making 'y': its attribute 'odd' is of kind SPARSE_TENSOR, which is not carried here"
    )


# -- functions -------------------------------------------------------------------------------------


def calling(*bodies: str) -> ModelProto:
    functions = "\n".join(
        f'<domain: "local", opset_import: ["": 17, "local": 1]> {body}' for body in bodies
    )
    return parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[2] x) => (float[2] y) {{ y = local.f0 (x) }}
        {functions}"""
    )


def test_a_function_that_calls_itself() -> None:
    model = calling("f0 (a) => (b) { b = local.f0 (a) }")
    assert refusal(model, Unsupported) == ("function local.f0 cannot be inlined: it calls itself")


def test_functions_that_call_each_other() -> None:
    model = calling("f0 (a) => (b) { b = local.f1 (a) }", "f1 (a) => (b) { b = local.f0 (a) }")
    assert refusal(model, Unsupported) == ("function local.f0 cannot be inlined: it calls itself")


def test_functions_that_grow_without_bounds_when_inlined() -> None:
    chain = [
        f"f{i} (a) => (b) {{ c = local.f{i + 1} (a)  b = local.f{i + 1} (c) }}" for i in range(60)
    ]
    model = calling(*chain, "f60 (a) => (b) { b = Relu (a) }")
    assert refusal(model, Unsupported) == (
        "the model's functions make more than 1000000 nodes when inlined: simplify the model first"
    )


# -- tensors ---------------------------------------------------------------------------------------


def holding(tensor: TensorProto) -> ModelProto:
    model = text("(float[2] x) => (float[2] y) { y = Add (x, w) }")
    tensor.name = "w"
    model.graph.initializer.append(tensor)
    return model


FLOAT = TensorProto.FLOAT
TENSORS: dict[str, tuple[TensorProto, str]] = {
    "no type": (TensorProto(dims=[2], data_type=99), "tensor 'w': no element type 99"),
    "negative dim": (
        TensorProto(dims=[-2], data_type=FLOAT, raw_data=b""), "tensor 'w': negative dim in [-2]",
    ),
    "short data": (
        TensorProto(dims=[2], data_type=FLOAT, raw_data=b"1234"),
        "tensor 'w': [2] of f32 takes 8 bytes, its raw_data has 4",
    ),
    "long data": (
        TensorProto(dims=[1], data_type=FLOAT, raw_data=b"12345678"),
        "tensor 'w': [1] of f32 takes 4 bytes, its raw_data has 8",
    ),
    "packed data": (
        TensorProto(dims=[3], data_type=TensorProto.INT4, raw_data=b"1"),
        "tensor 'w': [3] of i4 takes 2 bytes, its raw_data has 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_hold_something_else_than_they_say(case: str) -> None:
    tensor, message = TENSORS[case]
    assert refusal(holding(tensor)) == message


def test_typed_data_of_another_length() -> None:
    tensor = TensorProto(dims=[3], data_type=FLOAT, float_data=[1.0])
    assert refusal(holding(tensor)).startswith("tensor 'w': ")


@pytest.mark.parametrize(
    ("indices", "dims"), [([1, 9], [2, 3]), ([-1, 2], [2, 3]), ([[0, 1], [5, 0]], [2, 3]), ([1, 2], [-2, 3])]
)  # fmt: skip
def test_sparse_indices_out_of_bounds(indices: list[int], dims: list[int]) -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(2, np.float32), "w"),
        numpy_helper.from_array(np.array(indices, np.int64)),
        dims,
    )
    model = text("(float[2,3] x) => (float[2,3] y) { y = Add (x, w) }")
    model.graph.sparse_initializer.append(sparse)
    assert refusal(model).startswith(f"sparse tensor 'w' of {dims}: ")


# -- external data ---------------------------------------------------------------------------------


def external(data_type: int = FLOAT, **entries: object) -> ModelProto:
    tensor = TensorProto(data_type=data_type, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return holding(tensor)


def saved(folder: Path, model: ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


WHERE = "tensor 'w': external data"


def test_external_data_of_a_model_in_memory() -> None:
    assert refusal(external(location="w.bin")) == (
        f"{WHERE} 'w.bin' is beside a file, but the model was not given as one: give its path"
    )


def test_external_strings(tmp_path: Path) -> None:
    path = saved(tmp_path, external(TensorProto.STRING, location="w.bin"))
    assert refusal(path) == f"{WHERE} 'w.bin': strings cannot be external"


def absolute(folder: Path) -> str:
    return str(folder / "in" / "w.bin")


@pytest.mark.parametrize(
    "place", [lambda f: "../w.bin", absolute, lambda f: "", lambda f: "link.bin"]
)
def test_external_data_outside_of_the_folder(tmp_path: Path, place: Callable[[Path], str]) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 8)
    inner = tmp_path / "in"
    inner.mkdir()
    (inner / "w.bin").write_bytes(b"\0" * 8)
    (inner / "link.bin").symlink_to(tmp_path / "w.bin")
    location = place(tmp_path)
    path = saved(inner, external(location=location))
    assert refusal(path) == (
        f"{WHERE} {location!r} must lie in the model's folder, as a relative path"
    )


def test_external_data_that_is_not_there(tmp_path: Path) -> None:
    path = saved(tmp_path, external(location="w.bin"))
    assert refusal(path) == (
        f"{WHERE} 'w.bin': no such file beside the model; it belongs in {tmp_path.resolve()}"
    )


def test_external_data_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.bin")
    assert "no such file beside the model" in refusal(saved(tmp_path, external(location="w.bin")))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "x"}, "offset and length must be integers"),
        ({"offset": 4}, "bytes 4 to 12 do not hold [2] of f32 (8 bytes) in a file of 8"),
        ({"offset": -4}, "bytes -4 to 4 do not hold [2] of f32 (8 bytes) in a file of 8"),
        ({"length": 1 << 40}, f"bytes 0 to {1 << 40} do not hold [2] of f32 (8 bytes) in a file of 8"),
        ({"length": 4}, "bytes 0 to 4 do not hold [2] of f32 (8 bytes) in a file of 8"),
    ],
)  # fmt: skip
def test_external_data_of_another_length(
    tmp_path: Path, entries: dict[str, object], message: str
) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 8)
    path = saved(tmp_path, external(location="w.bin", **entries))
    assert refusal(path) == f"{WHERE} 'w.bin': {message}"


def test_a_location_that_no_file_can_have(tmp_path: Path) -> None:
    path = saved(tmp_path, external(location="a\0b"))
    assert refusal(path) == f"{WHERE} 'a\\x00b': embedded null byte"


# -- what fuzzing found ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('(float[2] x) => (float[2] y) { y = Loop <body = ["a"]> (x) }',
         "node Loop making 'y': Loop takes GRAPH as its attribute 'body', not ('a',)"),
        ("(float[3, 4] x) => (int64[4] y) { y = ArgMin <axis = -9> (x) }",
         "node ArgMin making 'y': ArgMin making %y: ArgMin does not take these operands and attributes "
         "(list assignment index out of range)"),
        ("(float[2, 3, 7, 8] x) => (float[N] y) { y = LpPool <kernel_shape = [3, 2], pads = [1, 0, 2, 1, 2]> (x) }",
         "node LpPool making 'y': LpPool making %y: LpPool does not take these operands and attributes "
         "(zip() argument 2 is longer than argument 1)"),
        ("(float[2] x) => (float[2] y) { y = Relu (x, x) }",
         "node Relu making 'y': Relu making %y: 2 operands, Relu takes 1"),
        ("(float[2] x) => (float[2] y) { y = Clip (, x) }",
         "node Clip making 'y': Clip making %y: Clip needs operand 0, which is left out"),
        ("(float[2] x) => (float[2] y) { y, z = Relu (x) }",
         "node Relu making 'y': Relu making %y: 2 results, Relu makes 1"),
        ("(float[2] x) => (float[2] y) { y = tersor.Linear (x) }",
         "node Linear making 'y': tersor.Linear is no op of an ONNX model"),
    ],
)  # fmt: skip
def test_an_op_that_does_not_take_what_it_is_given(body: str, message: str) -> None:
    model = text(body, '"": 17, "tersor": 1')
    assert refusal(model) == message


def test_a_node_without_results() -> None:
    model = text()
    model.graph.node.add(op_type="Relu", input=["x"])
    assert refusal(model).endswith("0 results, Relu makes 1")


def test_an_output_without_a_name() -> None:
    model = text()
    model.graph.output.add()
    assert refusal(model) == "output 1 of graph 'g' has no name"


def test_an_output_that_is_listed_twice() -> None:
    model = text()
    model.graph.output.append(model.graph.output[0])
    assert refusal(model) == "output 'y' of graph 'g' is listed twice"


def test_strings_in_raw_data() -> None:
    model = text()
    model.graph.initializer.add(
        name="s", data_type=TensorProto.STRING, dims=[1], raw_data=b"12345678"
    )
    assert refusal(model) == "tensor 's': strings cannot be held in raw_data"
