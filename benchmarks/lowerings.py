"""Single ops of language models at common sizes, in TVM against ONNX Runtime: microseconds and their ratio,
the slowest first. None should take three times as long in TVM.

Ops with kernels of their own are lowered to them; one row per case, at 8 sentences of 128 tokens unless stated
otherwise. Each time is the best of interleaved calls, with a pause between the systems.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import rows
import tvm
from rows import Json

from tersor.backends.ort.lower import lower
from tersor.backends.tvm.fuse import fuse
from tersor.backends.tvm.kernels.emit import Isa
from tersor.backends.tvm.link import loaded
from tersor.backends.tvm.module import function_name, lower_all
from tersor.backends.tvm.ops import RULES, fused
from tersor.backends.tvm.pipeline import compile_module, tvm_target
from tersor.frontends.onnx.exporter import export_model
from tersor.ir import Dense, DType, Encoding, Graph, parse
from tersor.ops import TABLE
from tersor.target import Target, usable_cores

SCRIPTS = [Path(__file__)]
PAGE = Path(__file__).with_name("LOWERINGS.md")
BOUND = 3.0  # times ONNX Runtime's
HIDDEN, HEADS = "f32[b, s, 384]", "f32[b, 12, s, 32]"
SCORES = "f32[b, 12, s, s]"
QKV = f"%x: {HEADS}, %y: {HEADS}, %z: {HEADS}"
SIZES = {"b": 8, "s": 128, "n": 1}
BELOW = {DType.U8: 100, DType.I32: 512}  # Integers of an input; of other types, token ids.

# "inputs | constants | the node": %x, %y, … are inputs, @w, @v, … random constants, and the node's result is %out.
# ruff: noqa: E501 -- one case per line
CASES: dict[str, str] = {
    "Add, residual": f"%x: {HIDDEN}, %y: {HIDDEN} | | {HIDDEN} = Add(%x, %y)",
    "Add, bias": f"%x: {HIDDEN} | @w: f32[384] | {HIDDEN} = Add(%x, @w)",
    "Add, mask to scores": f"%x: {SCORES}, %y: f32[b, 1, 1, s] | | {SCORES} = Add(%x, %y)",
    "Mul": f"%x: {HIDDEN}, %y: {HIDDEN} | | {HIDDEN} = Mul(%x, %y)",
    "Mul, mask of tokens": f"%x: {HIDDEN}, %y: f32[b, s, 1] | | {HIDDEN} = Mul(%x, %y)",
    "Div": f"%x: {HIDDEN}, %y: f32[b, s, 1] | | {HIDDEN} = Div(%x, %y)",
    "Neg": f"%x: {HIDDEN} | | {HIDDEN} = Neg(%x)",
    "Pow": f"%x: {HIDDEN} | @w: f32[] | {HIDDEN} = Pow(%x, @w)",
    "Sqrt": f"%x: {HIDDEN} | | {HIDDEN} = Sqrt(%x)",
    "Exp": f"%x: {HIDDEN} | | {HIDDEN} = Exp(%x)",
    "Erf": f"%x: {HIDDEN} | | {HIDDEN} = Erf(%x)",
    "Tanh": f"%x: {HIDDEN} | | {HIDDEN} = Tanh(%x)",
    "Sigmoid": f"%x: {HIDDEN} | | {HIDDEN} = Sigmoid(%x)",
    "Relu": f"%x: {HIDDEN} | | {HIDDEN} = Relu(%x)",
    "Gelu": f"%x: {HIDDEN} | | {HIDDEN} = Gelu(%x)",
    "Cos": "%x: f32[1, s, 64] | | f32[1, s, 64] = Cos(%x)",
    "Softmax, scores": f"%x: {SCORES} | | {SCORES} = Softmax(%x)",
    "Softmax, vocabulary": "%x: f32[b, 30522] | | f32[b, 30522] = Softmax(%x)",
    "LogSoftmax, vocabulary": "%x: f32[b, 30522] | | f32[b, 30522] = LogSoftmax(%x)",
    "LayerNormalization": f"%x: {HIDDEN} | @w: f32[384]; @v: f32[384] | {HIDDEN} = LayerNormalization(%x, @w, @v)",
    "RMSNormalization": f"%x: {HIDDEN} | @w: f32[384] | {HIDDEN} = RMSNormalization(%x, @w)",
    "MatMul, scores": f"%x: {HEADS}, %y: f32[b, 12, 32, s] | | {SCORES} = MatMul(%x, %y)",
    "MatMul, values": f"%x: {SCORES}, %y: {HEADS} | | {HEADS} = MatMul(%x, %y)",
    "MatMul, of one row": "%x: f32[n, 384], %y: f32[384, 1536] | | f32[n, 1536] = MatMul(%x, %y)",
    "MatMul, two inputs": "%x: f32[b, s, 384], %y: f32[384, 384] | | f32[b, s, 384] = MatMul(%x, %y)",
    "Linear": f"%x: {HIDDEN} | @w: f32[384, 384] | {HIDDEN} = tersor.Linear(%x, @w)",
    "Linear, one row": "%x: f32[n, 1, 384] | @w: f32[384, 1536] | f32[n, 1, 1536] = tersor.Linear(%x, @w)",
    "Linear, two classes": "%x: f32[b, 384] | @w: f32[384, 2] | f32[b, 2] = tersor.Linear(%x, @w)",
    "Linear, tags": "%x: f32[b, s, 384] | @w: f32[384, 9] | f32[b, s, 9] = tersor.Linear(%x, @w)",
    "Linear, vocabulary": "%x: f32[n, 1, 384] | @w: f32[384, 30522] | f32[n, 1, 30522] = tersor.Linear(%x, @w)",
    "Transpose, heads": f"%x: f32[b, s, 12, 32] | | {HEADS} = Transpose(%x) {{perm = [0, 2, 1, 3]}}",
    "Transpose, keys": f"%x: {HEADS} | | f32[b, 12, 32, s] = Transpose(%x) {{perm = [0, 1, 3, 2]}}",
    "Concat, halves": f"%x: f32[b, 12, s, 16], %y: f32[b, 12, s, 16] | | {HEADS} = Concat(%x, %y) {{axis = -1}}",
    "Concat, a cache": "%x: f32[b, 12, s, 32], %y: f32[b, 12, 1, 32] | | f32[b, 12, s + 1, 32] = Concat(%x, %y) {axis = 2}",
    "Gather, words": "%x: i64[b, s] | @w: f32[30522, 384] | f32[b, s, 384] = Gather(@w, %x)",
    "GatherElements, positions": "%x: f32[b, 12, s, 512], %y: i32[b, 12, s, s] | | f32[b, 12, s, s] = GatherElements(%x, %y) {axis = -1}",
    "Gather, first token": "%x: f32[b, s, 384] | @i: 0 | f32[b, 384] = Gather(%x, @i) {axis = 1}",
    "Slice, half": f"%x: {HEADS} | @i: 0; @j: 16; @k: 3 | f32[b, 12, s, 16] = Slice(%x, @i, @j, @k)",
    "ReduceMean, tokens": "%x: f32[b, s, 384] | @i: 1 | f32[b, 384] = ReduceMean(%x, @i) {keepdims = 0}",
    "ReduceSum, tokens": "%x: f32[b, s, 384] | @i: 1 | f32[b, 384] = ReduceSum(%x, @i) {keepdims = 0}",
    "ReduceMean, hidden": "%x: f32[b, s, 384] | @i: 2 | f32[b, s, 1] = ReduceMean(%x, @i)",
    "ReduceMax, hidden": "%x: f32[b, s, 384] | @i: 2 | f32[b, s, 1] = ReduceMax(%x, @i)",
    "ReduceMax, tokens": "%x: f32[b, s, 384] | @i: 1 | f32[b, 384] = ReduceMax(%x, @i) {keepdims = 0}",
    "ReduceL2": "%x: f32[b, 384] | @i: 1 | f32[b, 1] = ReduceL2(%x, @i)",
    "Where, scores": f"%x: bool[b, 1, 1, s], %y: {SCORES} | @w: f32[] | {SCORES} = Where(%x, %y, @w)",
    "Cast, mask": "%x: i64[b, s] | | f32[b, s] = Cast(%x) {to = 1}",
    "And, mask": "%x: bool[b, 1, 1, s], %y: bool[1, 1, s, s] | | bool[b, 1, s, s] = And(%x, %y)",
    "CumSum, positions": "%x: i64[b, s] | @j: 1 | i64[b, s] = CumSum(%x, @j)",
    "ArgMax, vocabulary": "%x: f32[b, 30522] | | i64[b] = ArgMax(%x) {axis = -1, keepdims = 0}",
    "ArgMax, tags": "%x: f32[b, s, 9] | | i64[b, s] = ArgMax(%x) {axis = -1, keepdims = 0}",
    "TopK, vocabulary": "%x: f32[b, 30522] | @i: 40 | f32[b, 40], %indices: i64[b, 40] = TopK(%x, @i)",
    "RotaryEmbedding": f"%x: {HEADS}, %y: f32[b, s, 16], %z: f32[b, s, 16] | | {HEADS} = RotaryEmbedding(%x, %y, %z)",
    "Attention, padding": f"{QKV}, %m: bool[b, 1, 1, s] | | {HEADS} = Attention(%x, %y, %z, %m)",
    "Attention, float mask": f"{QKV}, %m: f32[b, 1, 1, s] | | {HEADS} = Attention(%x, %y, %z, %m)",
    "Attention, position bias": f"{QKV}, %m: f32[1, 12, s, s] | | {HEADS} = Attention(%x, %y, %z, %m)",
    "Attention, causal": f"{QKV} | | {HEADS} = Attention(%x, %y, %z) {{is_causal = 1}}",
    "Attention, one query": f"%x: f32[b, 12, 1, 32], %y: {HEADS}, %z: {HEADS} | | f32[b, 12, 1, 32] = Attention(%x, %y, %z)",
    "QuantizeLinear": f"%x: {HIDDEN}, %y: f32[], %z: u8[] | | u8[b, s, 384] = QuantizeLinear(%x, %y, %z)",
    "DequantizeLinear": "%x: u8[b, s, 384], %y: f32[], %z: u8[] | | f32[b, s, 384] = DequantizeLinear(%x, %y, %z)",
    "DynamicQuantizeLinear": f"%x: {HIDDEN} | | u8[b, s, 384], %scale: f32[], %zero: u8[] = DynamicQuantizeLinear(%x)",
}  # fmt: skip
_DECLARED = re.compile(r"@(\w+): (f32\[([\d, ]*)\]|\d+)")


def graph_of(case: str, seed: int = 0) -> Graph:
    """A case's graph; a constant is random, or the integer stated for it."""
    inputs, constants, node = (part.strip() for part in case.split("|"))
    rng, weights, lines = np.random.default_rng(seed), dict[str, Encoding](), list[str]()
    for name, what, dims in _DECLARED.findall(constants):
        if not what.startswith("f32"):
            rank = "[]" if " CumSum(" in node or " Gather(" in node else "[1]"
            lines.append(f"@{name}: i64{rank} = dense [{what}]")
            continue
        shape = [int(d) for d in dims.split(",") if d.strip()]
        encoding = Dense(np.asarray(1 + rng.random(shape), np.float32))
        weights[encoding.digest] = encoding
        lines.append(f"@{name}: {what} = dense #{encoding.digest}")
    body = "\n  ".join([*lines, f"%out: {node}"])
    return parse(f"graph main({inputs}) -> (out = %out) {{\n  {body}\n}}", TABLE, weights)


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    """Inputs at the common size."""
    rng, feeds = np.random.default_rng(1), dict[str, np.ndarray]()
    for value in graph.inputs:
        shape = value.tensor.at(SIZES)
        kind = value.tensor.dtype
        if kind is DType.BOOL:
            feeds[value.name] = rng.random(shape) < 0.9
        elif kind.is_integer:
            limit = BELOW.get(kind, 30000)
            feeds[value.name] = rng.integers(0, limit, shape).astype(kind.numpy)
        else:
            feeds[value.name] = np.asarray(rng.random(shape, np.float32) + np.float32(0.1))
    return feeds


def in_tvm(graphs: list[Graph], cores: int) -> list[Callable[[], Any]]:
    """A callable for each case, all from one library."""
    target = Target.host()
    isa = Isa.of(target.features, cores)
    lowered = lower_all([fuse(g, isa) for g in graphs], {**RULES, **fused.rules(isa)})
    built = compile_module(lowered.module, tvm_target(target.features, cores))
    machine = tvm.relax.VirtualMachine(loaded(built, cores), tvm.cpu())

    def call(place: int, graph: Graph) -> Callable[[], Any]:
        feeds, function = feeds_of(graph), machine[function_name(place)]
        weights = [lowered.arrays[i] for i in lowered.parameters[place]]
        arguments = [
            tvm.runtime.tensor(np.array(a, order="C"))
            for a in (*(feeds[v.name] for v in graph.inputs), *weights)
        ]
        return lambda: function(*arguments)

    return [call(place, graph) for place, graph in enumerate(graphs)]


def in_ort(graph: Graph, cores: int) -> Callable[[], Any]:
    """A callable for one case, as this backend lowers it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = cores, 4
    model = export_model(lower(graph)).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = feeds_of(graph)
    return lambda: session.run(None, feeds)


def best(call: Callable[[], Any], calls: int) -> float:
    """Microseconds of the fastest of ``calls`` calls."""
    call()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def measure(count: int, cores: int) -> list[dict[str, Any]]:
    """``count`` rounds of both systems for each case, the slowest in TVM first."""
    tell = rows.progress("lowerings:")
    tell(0, 1, "building all cases")
    graphs = [graph_of(case) for case in CASES.values()]
    ours = in_tvm(graphs, cores)
    results = []
    for i, (name, graph, mine) in enumerate(zip(CASES, graphs, ours, strict=True)):
        theirs, times = in_ort(graph, cores), (list[float](), list[float]())
        for _ in range(count):
            for own, call in zip(times, (mine, theirs), strict=True):
                own.append(best(call, 8))
                time.sleep(0.05)  # Threads spin for a while after a call.
        tvm_us, ort_us = min(times[0]), min(times[1])
        results.append(
            {"op": name, "tvm_us": round(tvm_us, 1), "ort_us": round(ort_us, 1),
             "ratio": round(tvm_us / ort_us, 2)}
        )  # fmt: skip
        tell(i + 1, len(graphs), name)
    return sorted(results, key=lambda row: -float(row["ratio"]))


def table(results: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| op | TVM | ONNX Runtime | TVM / ONNX Runtime |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {r['op']} | {r['tvm_us']:.0f} µs | {r['ort_us']:.0f} µs | {r['ratio']:.2f} |"
        for r in results
    ]
    slow = [r["op"] for r in results if r["ratio"] > BOUND]
    return "\n".join([*lines, "", f"Above {BOUND:.0f} times: {', '.join(slow) or 'none'}."])


def page(results: Json) -> str:
    """LOWERINGS.md: a table for each measured number of threads."""
    parts = ["# Single ops of language models in TVM and in ONNX Runtime"]
    parts.append(
        f"{results['conditions']['machine']['cpu']}. Generated by `benchmarks/lowerings.py`."
    )
    for threads, rows_of in results["threads"].items():
        parts += [f"## {threads} thread{'s' * (threads != '1')}", table(rows_of)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Measures what is missing, on one thread and on all, and writes the tables."""
    parser = rows.parser(__doc__, "lowerings.json")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    wanted = rows.conditions(SCRIPTS, {"rounds": arguments.rounds})
    results = rows.load(arguments.out, wanted, arguments.fresh)
    measured = results.setdefault("threads", {})
    for threads in sorted({1, len(usable_cores())}):
        if str(threads) not in measured:
            start = time.monotonic()
            measured[str(threads)] = measure(arguments.rounds, threads)
            rows.finish(arguments.out, results, start)
    PAGE.write_text(page(results))
    print(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
