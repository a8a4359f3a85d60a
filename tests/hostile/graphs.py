"""Inconsistent graphs."""

from __future__ import annotations

import numpy as np
from hostile.table import Refused, in_memory, text
from onnx import AttributeProto, ModelProto, helper, numpy_helper

from tersor.errors import Unsupported


def node(*fields: object, opsets: str = '"": 17', **attributes: object) -> ModelProto:
    """y = op(inputs) on x: float[2, 3]."""
    op, inputs, outputs = fields
    model = text("(float[2,3] x) => (float[2,3] y) { y = Relu (x) }", opsets)
    new = helper.make_node(str(op), inputs, outputs, name="n", **attributes)  # type: ignore[arg-type]
    model.graph.node[0].CopyFrom(new)
    return model


def ring(count: int) -> ModelProto:
    """A cycle of ``count`` nodes, with a node before and one after it."""
    model = text("(float[2] x) => (float[2] y) { y = Relu (v0) }")
    for i in range(count):
        reads = [f"v{(i - 1) % count}", "x"]
        model.graph.node.append(helper.make_node("Add", reads, [f"v{i}"], name=f"n{i}"))
    model.graph.node.append(helper.make_node("Neg", ["x"], ["z"]))
    return model


def duplicated(kind: str) -> ModelProto:
    """A model with a duplicate input, output or initializer."""
    model = text("(float[2] x) => (float[2] y) { y = Add (x, w) }")
    w = numpy_helper.from_array(np.ones(2, np.float32), "w")
    model.graph.initializer.append(w)
    field = getattr(model.graph, kind)
    field.append(field[0])
    return model


def unnamed(kind: str) -> ModelProto:
    model = duplicated("initializer")
    del model.graph.initializer[1]
    getattr(model.graph, kind)[0].name = ""
    return model


def declared(name: str, dims: list[int], elem_type: int = 1) -> ModelProto:
    """A model whose value_info declares another type."""
    model = text("(float[2] x) => (float[2] y) { h = Relu (x)  y = Neg (h) }")
    model.graph.value_info.append(helper.make_tensor_value_info(name, elem_type, dims))
    return model


def initializer_and_input() -> ModelProto:
    model = duplicated("initializer")
    del model.graph.initializer[1]
    model.graph.input.append(helper.make_tensor_value_info("w", 1, [5]))
    return model


def without_outputs() -> ModelProto:
    model = text()
    del model.graph.output[:]
    return model


def attribute(**fields: object) -> ModelProto:
    model = node("Softmax", ["x"], ["y"])
    model.graph.node[0].attribute.add(**fields)
    return model


def doubled_attribute() -> ModelProto:
    model = node("Softmax", ["x"], ["y"], axis=0)
    model.graph.node[0].attribute.add(name="axis", type=2, i=1)
    return model


def foreign_attribute() -> ModelProto:
    model = text(opsets='"": 17, "other": 1')
    model.graph.node[0].domain = "other"
    model.graph.node[0].attribute.add(name="odd", type=AttributeProto.SPARSE_TENSOR)
    return model


def nested(levels: int) -> ModelProto:
    """Nested Ifs in memory, where nothing limits their depth."""
    model = text("(bool c, float[2] x) => (float[2] y) { y = Identity (x) }")
    graph = model.graph
    for i in range(levels):
        del graph.node[:]
        branching = graph.node.add(op_type="If", input=["c"], output=[graph.output[0].name])
        for name in ("then_branch", "else_branch"):
            graph = branching.attribute.add(name=name, type=AttributeProto.GRAPH).g
            graph.name = f"g{i}"
            graph.output.add(name=f"{name[0]}{i}").type.CopyFrom(model.graph.output[0].type)
            graph.node.add(op_type="Identity", input=["x"], output=[graph.output[0].name])
    return model


def nested_type(levels: int) -> ModelProto:
    model = text()
    model.graph.input[0].type.Clear()
    inner = model.graph.input[0].type
    for _ in range(levels):
        inner = inner.sequence_type.elem_type
    inner.tensor_type.elem_type = 1
    return model


LONG = "n" * 1_000_000

GRAPHS = [
    Refused("a value defined twice", in_memory(text("(float[2] x) => (float[2] y) { y = Relu (x)  y = Neg (x) }")), "Neg %y: its result 'y' is already defined"),
    Refused("a value with the name of an input", in_memory(text("(float[2] x) => (float[2] x) { x = Relu (x) }")), "Relu %x: its result 'x' is already defined"),
    Refused("an undefined operand", in_memory(text("(float[2] x) => (float[2] y) { y = Add (x, gone) }")), "Add %y: its operand 'gone' is not defined"),
    Refused("an undefined output", in_memory(text("(float[2] x) => (float[2] gone) { y = Relu (x) }")), "graph output 'gone' is not defined"),
    Refused("a cycle of one", in_memory(ring(1)), "a cycle of 1 nodes: Add %v0 (n0) -> Add %v0 (n0)"),
    Refused("a cycle of three", in_memory(ring(3)), "a cycle of 3 nodes: Add %v0 (n0) -> Add %v1 (n1) -> Add %v2 (n2) -> Add %v0 (n0)"),
    Refused("a cycle of a thousand", in_memory(ring(1000)), "a cycle of 1000 nodes: Add %v0 (n0) -> Add %v1 (n1) -> Add %v2 (n2) -> Add %v3 (n3) -> Add %v4 (n4) -> Add %v5 (n5) -> 994 more -> Add %v0 (n0)"),
    Refused("an input twice", in_memory(duplicated("input")), "duplicate graph input 'x'"),
    Refused("an output twice", in_memory(duplicated("output")), "duplicate graph output 'y'"),
    Refused("an initializer twice", in_memory(duplicated("initializer")), "duplicate initializer 'w'"),
    Refused("an input without a name", in_memory(unnamed("input")), "graph input 0 has no name"),
    Refused("an output without a name", in_memory(unnamed("output")), "graph output 0 has no name"),
    Refused("an initializer without a name", in_memory(unnamed("initializer")), "initializer 0 has no name"),
    Refused("no outputs", in_memory(without_outputs()), "the graph has no outputs, so there is nothing to compile"),
    Refused("value_info of another dtype", in_memory(declared("h", [2], 7)), "Relu %h: 'h' is f32[2], but the model declares i64[2]"),
    Refused("an output of another dtype", in_memory(text("(float[2] x) => (int64[2] y) { y = Relu (x) }")), "Relu %y: 'y' is f32[2], but the model declares i64[2]"),
    Refused("an initializer and an input of two shapes", in_memory(initializer_and_input()), "initializer 'w' is f32[2], but the model declares f32[5]"),
    Refused("an unknown op", in_memory(node("Rellu", ["x"], ["y"])), "Rellu %y (n): ONNX has no op 'Rellu', did you mean 'Relu'?"),
    Refused("an op of a later opset", in_memory(node("Gelu", ["x"], ["y"])), "Gelu %y (n): the op exists since opset 20, but the model imports 17"),
    Refused("an op of a domain without an opset", in_memory(node("Op", ["x"], ["y"], domain="other")), "other.Op %y (n): the model imports no opset of 'other'"),
    Refused("a standard op without an opset", in_memory(text(opsets='"other": 1')), "Relu %y: the model imports no opset of 'ai.onnx'"),
    Refused("an op of the IR's own", in_memory(node("Linear", ["x"], ["y"], domain="tersor")), "tersor.Linear %y (n): the model imports no opset of 'tersor'"),
    Refused("too few operands", in_memory(node("Add", ["x"], ["y"])), "Add %y (n): has 1 inputs, must have 2"),
    Refused("too many operands", in_memory(node("Relu", ["x", "x"], ["y"])), "Relu %y (n): has 2 inputs, must have 1"),
    Refused("no operands of a variadic op", in_memory(node("Concat", [], ["y"], axis=0)), "Concat %y (n): has 0 inputs, must have 1 or more"),
    Refused("a missing operand", in_memory(node("Add", ["x", ""], ["y"])), "Add %y (n): operand 1, 'B', is missing"),
    Refused("too many results", in_memory(node("Relu", ["x"], ["y", "z"])), "Relu %y (n): has 2 outputs, must have 1"),
    Refused("no results", in_memory(node("Relu", ["x"], [])), "Relu (n): has 0 outputs, must have 1"),
    Refused("operands that do not match", in_memory(node("MatMul", ["x", "x"], ["y"])), "MatMul %y (n): [ShapeInferenceError] Incompatible dimensions for matrix multiplication"),
    Refused("attention on operands of different ranks", in_memory(text("(float[2, 3, 8] q, float[5, 8] v) => (float[2, 3, 8] y) { y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, q, v) }", '"": 23')), "Attention %y: its operands have 3, 3 and 2 axes, not all 3 or all 4"),
    Refused("attention whose heads do not divide", in_memory(text("(float[2, 3, 8] q) => (float[2, 3, 8] y) { y = Attention <q_num_heads = 3, kv_num_heads = 2> (q, q, q) }", '"": 23')), "Attention %y: 3 and 2 heads do not divide its operands' last axes"),
    Refused("attention whose heads do not fit", in_memory(text("(float[2, 3, 8] q) => (float[2, 3, 8] y) { y = Attention <q_num_heads = 4, kv_num_heads = 2> (q, q, q) }", '"": 23')), "Attention %y: heads of 2 in the query do not fit those of 4 in the key"),
    Refused("attention with fewer values than keys", in_memory(text("(float[2, 2, 3, 8] q, float[2, 2, 1, 8] v) => (float[2, 2, 3, 8] y) { y = Attention (q, q, v) }", '"": 23')), "Attention %y: 3 keys and 1 values"),
    Refused("an axis out of range", in_memory(text("(float[3, 4] x) => (int64[4] y) { y = ArgMin <axis = -9> (x) }")), "ArgMin %y: ArgMin does not take these operands and attributes (list assignment index out of range)"),
    Refused("pads of three axes for two", in_memory(text("(float[2, 3, 7, 8] x) => (float[N] y) { y = LpPool <kernel_shape = [3, 2], pads = [1, 0, 2, 1, 2]> (x) }")), "LpPool %y: LpPool does not take these operands and attributes (zip() argument 2 is longer than argument 1)"),
    Refused("dtypes that do not match", in_memory(text("(float[2] x, int64[2] z) => (float[2] y) { y = Add (x, z) }")), "Add %y: operand 1 is i64, operand 0 is f32; Add takes one type for both"),
    Refused("an axis out of the rank of Concat", in_memory(node("Concat", ["x", "x"], ["y"], axis=7)), "Concat %y (n): axis 7 is outside of rank 2"),
    Refused("an invalid permutation", in_memory(node("Transpose", ["x"], ["y"], perm=[0, 0])), "Transpose %y (n): perm [0, 0] is not a permutation of 2 axes"),
    Refused("an unknown attribute", in_memory(node("Softmax", ["x"], ["y"], axes=1)), "Softmax %y (n): unknown attribute 'axes', did you mean 'axis'? (known: axis)"),
    Refused("a missing attribute", in_memory(node("Concat", ["x", "x"], ["y"])), "Concat %y (n): attribute 'axis' is missing"),
    Refused("an attribute of another type", in_memory(node("Transpose", ["x"], ["y"], perm=1)), "Transpose %y (n): attribute 'perm' is of type int, not ints"),
    Refused("an attribute twice", in_memory(doubled_attribute()), "Softmax %y (n): duplicate attribute 'axis'"),
    Refused("an attribute without a type", in_memory(attribute(name="axis", i=1)), "Softmax %y (n): attribute 'axis' has no type"),
    Refused("an attribute of a function outside of one", in_memory(attribute(name="axis", type=2, ref_attr_name="a")), "Softmax %y (n): attribute 'axis' refers to a function's attribute 'a', but the node is not in a function"),
    Refused("an attribute of an unsupported kind", in_memory(foreign_attribute()), "other.Relu %y: attribute 'odd' is of the unsupported kind SPARSE_TENSOR", Unsupported),
    Refused("a Constant of two values", in_memory(text("(float[2] x) => (float[2] y) { c = Constant <value_int = 1, value_float = 2.0> () y = Relu (x) }")), "Constant %c: must have exactly one attribute, its value"),
    Refused("a Constant without a value", in_memory(text("(float[2] x) => (float[2] y) { c = Constant () y = Relu (x) }")), "Constant %c: must have exactly one attribute, its value"),
    Refused("an unknown attribute of Constant", in_memory(text("(float[2] x) => (float[2] y) { c = Constant <number = 1> () y = Relu (x) }")), "Constant %c: unknown attribute 'number' (known: sparse_value, value, value_float, value_floats, value_int, value_ints, value_string, value_strings)"),
    Refused("a Cast to an unknown type", in_memory(node("Cast", ["x"], ["y"], to=99)), "Cast %y (n): Cast does not take these operands and attributes (99)"),
    Refused("dims past 64 bits", in_memory(text("(float[4611686018427387904] x) => (float[N] y) { a = Concat <axis = 0> (x, x)  y = Concat <axis = 0> (a, a) }")), "Concat %a: a dim of its result is over 9223372036854775807"),
    Refused("an If whose branches return other numbers of values", in_memory(text("(bool c, float[2] x) => (float[2] y) { y = If (c) <then_branch = t () => (float[2] a) { a = Identity (x) }, else_branch = e () => (float[2] b, float[2] d) { b = Neg (x)  d = Relu (x) }> }")), "If %y: branches return [1, 2] values for 1 results"),
    Refused("a value of one branch read in the other", in_memory(text("(bool c, float[2] x) => (float[2] y) { y = If (c) <then_branch = t () => (float[2] a) { a = Identity (x) }, else_branch = e () => (float[2] b) { b = Neg (a) }> }")), "Neg %b: its operand 'a' is not defined"),
    Refused("a cycle by way of a subgraph", in_memory(text("(bool c, float[2] x) => (float[2] y) { y = If (c) <then_branch = t () => (float[2] a) { a = Identity (z) }, else_branch = e () => (float[2] b) { b = Neg (x) }>  z = Relu (y) }")), "a cycle of 2 nodes: If %y -> Relu %z -> If %y"),
    Refused("subgraphs too deep in memory", in_memory(nested(500)), "subgraphs nest deeper than 33, the most that a file can contain: flatten them"),
    Refused("a type too deep in memory", in_memory(nested_type(500)), "a type nests deeper than 32"),
    Refused("a list of words for a body", in_memory(text('(float[2] x) => (float[2] y) { y = Loop <body = ["a"]> (, , x) }')), "Loop %y: attribute 'body' is of type strings, not graph"),
    Refused("a reduction over an axis out of range", in_memory(text("(float[3, 4] x) => (int64[4] y) { y = ArgMin <axis = -9> (x) }")), "ArgMin %y: ArgMin does not take these operands and attributes (list assignment index out of range)"),
    Refused("an odd number of pads", in_memory(text("(float[2, 3, 7, 8] x) => (float[N] y) { y = LpPool <kernel_shape = [3, 2], pads = [1, 0, 2, 1, 2]> (x) }", '"": 18')), "LpPool %y: LpPool does not take these operands and attributes (zip() argument 2 is longer than argument 1)"),
    Refused("the first operand left out", in_memory(text("(float[2] x) => (float[2] y) { y = Clip (, x) }")), "Clip %y: operand 0, 'input', is missing"),
    Refused("an op that only passes emit", in_memory(text("(float[2] x) => (float[2] y) { y = tersor.Linear (x) }", '"": 17, "tersor": 1')), "tersor.Linear %y: not an op of ONNX models"),
    Refused("an op with a dot in its name", in_memory(node("com.microsoft.Gelu", ["x"], ["y"])), "com.microsoft.Gelu %y (n): ONNX has no op 'com.microsoft.Gelu'"),
    Refused("a form without a current equivalent", in_memory(text('(float[1,1,2,2] x, float[0] r, float[4] s) => (float[1,1,4,4] y) { y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (x, r, s) }', '"": 11')), "Resize %y: coordinate_transformation_mode is 'tf_half_pixel_for_nn', which ONNX removed in opset 13: export the model at a newer opset", Unsupported),
    Refused("a name of a million characters", in_memory(node("Add", ["x", LONG], ["y"])), "Add %y (n): its operand '" + "n" * 275 + " … " + "n" * 134 + "' is not defined"),
    Refused("a name with markup, an escape and a newline", in_memory(node("Add", ["x", "[/red]\x1b[2J\n<script>"], ["y"])), "Add %y (n): its operand '[/red]\\x1b[2J\\n<script>' is not defined"),
    Refused("a name that reverses the text", in_memory(node("Add", ["x", "\u202egpj.exe"], ["y"])), "Add %y (n): its operand '\\u202egpj.exe' is not defined"),
    Refused("an op with an escape in its name", in_memory(node("\x1b[2JAdd", ["x"], ["y"])), "�[2JAdd %y (n): ONNX has no op '\\x1b[2JAdd', did you mean 'Add'?"),
    Refused("a domain with an escape in its name", in_memory(node("Add", ["x"], ["y"], domain="\x1b]0;a\x07")), "�]0;a�.Add %y (n): the model imports no opset of '\\x1b]0;a\\x07'"),
]  # fmt: skip
