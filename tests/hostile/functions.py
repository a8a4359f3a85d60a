"""Functions that cannot be inlined."""

from __future__ import annotations

from hostile.table import Refused, in_memory
from onnx import ModelProto, parser

from tersor.errors import Unsupported


def calling(*bodies: str, opsets: str = '"": 17, "local": 1') -> ModelProto:
    functions = "\n".join(f'<domain: "local", opset_import: [{opsets}]> {body}' for body in bodies)
    return parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[2] x) => (float[2] y) {{ y = local.f0 (x) }}
        {functions}"""
    )


def chain(length: int, calls: int, last: str) -> ModelProto:
    """f0 calls f1, which calls f2 …; each ``calls`` times."""
    bodies = []
    for i in range(length):
        steps = "  ".join(f"v{j + 1} = local.f{i + 1} (v{j})" for j in range(calls))
        bodies.append(f"f{i} (v0) => (v{calls}) {{ {steps} }}")
    return calling(*bodies, f"f{length} (a) => (b) {{ b = {last} (a) }}")


def doubled() -> ModelProto:
    model = calling("f0 (a) => (b) { b = Relu (a) }")
    model.functions.append(model.functions[0])
    return model


def many_operands() -> ModelProto:
    model = calling("f0 (a) => (b) { b = Relu (a) }")
    model.graph.node[0].input.append("x")
    return model


def many_results() -> ModelProto:
    model = calling("f0 (a) => (b) { b = Relu (a) }")
    model.graph.node[0].output.append("z")
    return model


def without_opset() -> ModelProto:
    model = calling("f0 (a) => (b) { b = Relu (a) }")
    del model.functions[0].opset_import[:]
    return model


FUNCTIONS = [
    Refused("recursive", in_memory(calling("f0 (a) => (b) { b = local.f0 (a) }")), "function local.f0 cannot be inlined: it is recursive", Unsupported),
    Refused("mutually recursive", in_memory(calling("f0 (a) => (b) { b = local.f1 (a) }", "f1 (a) => (b) { b = local.f0 (a) }")), "function local.f0 cannot be inlined: it is recursive", Unsupported),
    Refused("a ring of a thousand", in_memory(chain(1000, 1, "local.f0")), "function local.f0 cannot be inlined: it is recursive", Unsupported),
    Refused("doubles sixty times", in_memory(chain(60, 2, "Relu")), "the model's functions expand to more than 1000000 nodes when inlined: simplify the model first", Unsupported),
    Refused("nests too deep", in_memory(chain(1000, 1, "Relu")), "the model's functions cannot be inlined: Function call chain depth exceeds limit (100). The model may be malformed or malicious."),
    Refused("defined twice", in_memory(doubled()), "function local.f0 is defined twice"),
    Refused("too many operands", in_memory(many_operands()), "local.f0 %y: has 2 inputs, its function has 1"),
    Refused("too many results", in_memory(many_results()), "local.f0 %y: has 2 outputs, its function has 1"),
    Refused("no opset", in_memory(without_opset()), "function local.f0: Relu %b: the function imports no opset of 'ai.onnx'"),
    Refused("an operand that is not defined", in_memory(calling("f0 (a) => (b) { b = Add (a, gone) }")), "function local.f0: Add %b: its operand 'gone' is not defined"),
    Refused("an output that is not defined", in_memory(calling("f0 (a) => (gone) { b = Relu (a) }")), "function local.f0: its output 'gone' is not defined"),
    Refused("a value defined twice", in_memory(calling("f0 (a) => (b) { b = Relu (a)  b = Neg (a) }")), "function local.f0: Neg %b: its result 'b' is already defined"),
    Refused("a duplicate input", in_memory(calling("f0 (a, a) => (b) { b = Relu (a) }")), "function local.f0: duplicate input or output 'a'"),
    Refused("a cycle", in_memory(calling("f0 (a) => (b) { c = Add (a, d)  d = Neg (c)  b = Relu (d) }")), "a cycle of 2 nodes: Add %c -> Neg %d -> Add %c"),
]  # fmt: skip
