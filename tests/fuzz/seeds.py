"""Writes first inputs for the fuzzers: small models of every kind that the loader knows.

python tests/fuzz/seeds.py FOLDER
"""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from tersor.artifact.manifest import Manifest
from tersor.backends.ort import Choice
from tersor.errors import TersorError
from tersor.files.storage import Stored
from tersor.frontends.onnx import export_model, import_model
from tersor.ir import print_graph
from tersor.ops.samples import cases, one_node
from tersor.pipeline.report import PassReport, Remark, Report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fuzz.targets import EMPTY

FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
main (float[N, 4] x) => (float[N, 4] y) { t = own.twice <scale: float = 2.0> (x)  y = own.twice(t) }
<domain: "own", opset_import: ["" : 17]>
twice <scale: float = 1.0> (a) => (b) { s = Constant <value_float: float = @scale> ()  b = Mul(a, s) }
"""
BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
main (float[N, 4] x, bool c) => (float[N, 4] y) {
  k = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> ()
  y = If (c) <then_branch = yes () => (float[N, 4] a) { a = Add(x, k) },
              else_branch = no () => (float[N, 4] b) {
                b = If (c) <then_branch = in1 () => (p) { p = Neg(x) }, else_branch = in2 () => (q) { q = Mul(x, k) }>
              }>
}
"""
LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
main (int64 n, bool c, float[4] x) => (float[4] y, float[M, 4] z) {
  y, z = Loop (n, c, x) <body = turn (int64 i, bool go, float[4] v) => (bool on, float[4] w, float[4] s) {
    on = Identity(go)  f = Cast <to = 1> (i)  w = Add(v, f)  s = Relu(w) }>
}
"""
SCAN = """
<ir_version: 8, opset_import: ["" : 17]>
main (float[2] s, float[N, 2] x) => (float[2] t, float[N, 2] y) {
  t, y = Scan <num_scan_inputs = 1, body = step (float[2] a, float[2] b) => (float[2] c, float[2] d) {
    c = Add(a, b)  d = Identity(c) }> (s, x)
}
"""
SEQUENCE = """
<ir_version: 8, opset_import: ["" : 17]>
main (float[N, 2] x, int64 i) => (float[M, 2] y) {
  e = SequenceEmpty()  s = SequenceInsert(e, x)  u = SequenceInsert(s, x, i)  y = ConcatFromSequence <axis = 0> (u)
}
"""
OPTIONAL = """
<ir_version: 8, opset_import: ["" : 18]>
main (float[2] x) => (float[2] y, bool h) { o = Optional(x)  y = OptionalGetElement(o)  h = OptionalHasElement(o) }
"""
FOREIGN = """
<ir_version: 8, opset_import: ["" : 11, "com.microsoft" : 1]>
main (float[N, 4] x) => (float[N, 4] y) { a = com.microsoft.Odd <k = 3> (x)  y = Dropout(a) }
"""


def sparse() -> onnx.ModelProto:
    model = onnx.parser.parse_model(FOREIGN)
    held = model.graph.sparse_initializer.add(dims=[4])
    held.values.CopyFrom(onnx.numpy_helper.from_array(np.array([1.0], np.float32), "w"))
    held.indices.CopyFrom(onnx.numpy_helper.from_array(np.array([2]), "w_i"))
    model.graph.node.add(op_type="Add", input=["y", "w"], output=["z"])
    return model


def external() -> onnx.ModelProto:
    model = onnx.parser.parse_model(FOREIGN)
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "4"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    model.graph.node.add(op_type="Add", input=["y", "w"], output=["z"])
    return model


def models() -> dict[str, bytes]:
    texts = {
        "function": FUNCTION, "branches": BRANCHES, "loop": LOOP, "scan": SCAN, "sequence": SEQUENCE,
        "optional": OPTIONAL, "foreign": FOREIGN,
    }  # fmt: skip
    found = {n: onnx.parser.parse_model(t).SerializeToString() for n, t in texts.items()}
    found |= {"sparse": sparse().SerializeToString(), "external": external().SerializeToString()}
    for case in cases():
        try:
            found[case.name] = export_model(one_node(case.row.op, case.sample)).SerializeToString()
        except TersorError:  # an op of our own, which no ONNX file holds
            continue
    return found


def archives() -> dict[str, bytes]:
    found = {}
    for name, held in {
        "one": {"x": np.arange(3, dtype=np.float32)},
        "two": {"ids": np.zeros((2, 2), np.int64), "mask": np.ones((2, 2), bool)},
    }.items():
        for packed, save in (("", np.savez), ("-packed", np.savez_compressed)):
            file = io.BytesIO()
            save(file, **held)
            found[name + packed] = file.getvalue()
    return found


def manifest() -> bytes:
    """Of an artifact whose model is empty."""
    digest = hashlib.sha256(b"").hexdigest()
    passes = [
        PassReport(
            "a",
            skips=[Remark("y", layer="x", method="m", bytes=-1)],
            notes=[Remark("z", layer="w", error=0.5)],
        )
    ]
    return Manifest(
        runtime="ort",
        choice=Choice().to_json(),
        model=EMPTY,
        weights=None,
        extras={"tokenizer.json": EMPTY},
        files={EMPTY: Stored(digest, 0)},
        about={"recipe": "int8"},
        report=Report(passes=passes),
    ).to_bytes()


RECIPE = b"""description = "int8"
[[passes]]
name = "quantize-dynamic"
max_error = 0.05
ignored_scopes = ["a.*"]
[[passes]]
name = "smooth-activations"
alphas = [0.5, 0.7]
"""


def main(folder: Path) -> None:
    made = {"onnx": models(), "npz": archives()}
    made["manifest"] = {"one": manifest()}
    made["recipe"] = {"one": RECIPE}
    made["text"] = {}
    for name, data in made["onnx"].items():
        try:
            made["text"][name] = print_graph(import_model(data)).encode()
        except TersorError:
            continue
    for target, inputs in made.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / target / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
