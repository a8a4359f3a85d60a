"""Fusion: which chains become one op, which do not, and that results stay the same."""

from __future__ import annotations

import re
from typing import Any
from zlib import crc32

import numpy as np
import pytest

tvm = pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends import ort  # noqa: E402
from tersor.backends.tvm.fuse import fuse  # noqa: E402
from tersor.backends.tvm.kernels.emit import Isa  # noqa: E402
from tersor.backends.tvm.module import MAIN, lower  # noqa: E402
from tersor.backends.tvm.ops import RULES, fused  # noqa: E402
from tersor.backends.tvm.pipeline import compile_module, tvm_target  # noqa: E402
from tersor.ir import Affine, Dense, DType, Encoding, Graph, parse, print_graph, verify  # noqa: E402
from tersor.ops import TABLE  # noqa: E402
from tersor.passes.quantize.quantize_dynamic import QuantizeDynamic  # noqa: E402
from tersor.pipeline import Pipeline  # noqa: E402
from tersor.target import Target, request_amx  # noqa: E402

VNNI, AMX, AVX2 = Isa(16, "vnni", 2), Isa(16, "amx", 2, True), Isa(8, "widen", 2)

# A layer of a transformer, after its norms; a constant is random numbers of its shape.
LAYER = """graph main(%x: f32[b, s, 64], %mask: bool[b, 1, 1, s]) -> (y = %y) {
  @wq: f32[64, 64]
  @wk: f32[64, 64]
  @wv: f32[64, 64]
  @wo: f32[64, 64]
  @w1: f32[64, 144]
  @w2: f32[144, 64]
  @bq: f32[64]
  @bv: f32[64]
  @bo: f32[64]
  @b1: f32[144]
  @g1: f32[64]
  @g2: f32[64]
  @e1: f32[64]
  @e2: f32[64]
  %q: f32[b, s, 64] = tersor.Linear(%x, @wq, @bq)
  %k: f32[b, s, 64] = tersor.Linear(%x, @wk)
  %v: f32[b, s, 64] = tersor.Linear(%x, @wv, @bv)
  %a: f32[b, s, 64] = Attention(%q, %k, %v, %mask) {q_num_heads = 2, kv_num_heads = 2}
  %o: f32[b, s, 64] = tersor.Linear(%a, @wo, @bo)
  %n: f32[b, s, 64], %sum: f32[b, s, 64] = tersor.AddLayerNormalization(%o, %x, @g1, @e1) {epsilon = 1e-5}
  %h: f32[b, s, 144] = tersor.Linear(%n, @w1, @b1) {activation = "gelu"}
  %f: f32[b, s, 64] = tersor.Linear(%h, @w2)
  %y: f32[b, s, 64] = tersor.AddLayerNormalization(%n, %f, @g2, @e2) {epsilon = 1e-5}
}"""
WHOLE = ["tvm.Linear", "tvm.Attention", "tvm.Linear", "tvm.Linear", "tvm.Linear"]


def ir(text: str) -> Graph:
    """The graph of a text whose constants are only declared."""
    constants: dict[str, Encoding] = {}

    def declare(match: re.Match[str]) -> str:
        line, name, dims = match[0], match[1], [int(d) for d in match[2].split(",")]
        rng = np.random.default_rng(crc32(name.encode()))
        numbers = rng.standard_normal(dims).astype(np.float32)
        encoding = Dense(numbers / np.float32(dims[0] ** 0.5) if len(dims) > 1 else numbers)
        constants[encoding.digest] = encoding
        return f"{line} = dense #{encoding.digest}"

    text = re.sub(r"@(\w+): f32\[([\d, ]+)\](?=\n)", declare, text)
    graph = parse(text, TABLE, constants)
    verify(graph)
    return graph


def changed(*changes: tuple[str, str], text: str = LAYER) -> str:
    """A text with parts replaced."""
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def quantized(graph: Graph) -> Graph:
    return Pipeline([QuantizeDynamic(min_elements=0, granularity="token")]).run(graph)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def nodes(graph: Graph) -> str:
    """The text without its constants."""
    lines = print_graph(graph).splitlines()
    return "\n".join(line for line in lines[1:-1] if not line.startswith("  @"))


def expect(graph: Graph, isa: Isa, after: str) -> None:
    assert nodes(fuse(graph, isa)) == after.rstrip()


# -- whole layers ----------------------------------------------------------------------------------


def test_a_layer_in_int8_is_five_ops() -> None:
    expect(
        quantized(ir(LAYER)), AMX,
        """\
  %v_1: u16[b, s, 192], %q_1: u8[max(16, b*s), 192], %ranges: f32[b, s, 2] = tvm.Linear(%x, _, @wq_1, @bias) {activation = "none", epsilon = 0.0, format = "int8", norm = "none", quantized = 0, result = "bfloat16"}
  %a_1: f32[b, s, 64] = tvm.Attention(%v_1, _, _, %mask) {dtype = "bfloat16", is_causal = 0, kv_num_heads = 2, q_num_heads = 2, scale = 0.17677669}
  %n_1: f32[b, s, 64], %q_2: u8[max(16, b*s), 64], %ranges_1: f32[b, s, 2] = tvm.Linear(%a_1, _, @wo_1, @bo, %x, @g1, @e1) {activation = "none", epsilon = 1e-05, format = "int8", norm = "layer", quantized = 0, result = "float32"}
  %h_1: f32[b, s, 144], %q_3: u8[max(16, b*s), 192], %ranges_2: f32[b, s, 2] = tvm.Linear(%q_2, %ranges_1, @w1_1, @b1) {activation = "gelu", epsilon = 0.0, format = "int8", norm = "none", quantized = 1, result = "float32"}
  %y_1: f32[b, s, 64], %q_4: u8[max(16, b*s), 64], %ranges_3: f32[b, s, 2] = tvm.Linear(%q_3, %ranges_2, @w2_1, _, %n_1, @g2, @e2) {activation = "none", epsilon = 1e-05, format = "int8", norm = "layer", quantized = 1, result = "float32"}
""",
    )  # fmt: skip


def test_a_layer_in_float_is_five_ops() -> None:
    fused = fuse(ir(LAYER), AMX)
    assert ops(fused) == WHOLE
    assert {n.attrs["format"] for n in fused.nodes if n.op == "tvm.Linear"} == {"float32"}
    assert list(fused.nodes)[1].attrs["dtype"] == "float32"


def test_the_graph_itself_is_unchanged() -> None:
    graph = quantized(ir(LAYER))
    before = print_graph(graph)
    fuse(graph, VNNI)
    assert print_graph(graph) == before


# -- parts of it -----------------------------------------------------------------------------------


def test_a_residual_may_have_other_readers() -> None:
    graph = ir(changed(
        ("-> (y = %y)", "-> (y = %y, z = %z)"), ("  %f:", "  %z: f32[b, s, 64] = Neg(%n)\n  %f:")
    ))  # fmt: skip
    assert ops(fuse(graph, VNNI)) == [*WHOLE[:4], "Neg", "tvm.Linear"]


def test_a_norm_whose_sum_is_read_is_not_fused() -> None:
    fused = fuse(ir(changed(("(y = %y)", "(y = %y, sum = %sum)"))), VNNI)
    assert ops(fused) == [*WHOLE[:3], "tersor.AddLayerNormalization", *WHOLE[3:]]
    assert list(fused.nodes)[2].attrs["norm"] == "none"


@pytest.mark.parametrize(
    "change",
    [
        (("tersor.AddLayerNormalization(%o, %x, @g1, @e1) {", "tersor.AddLayerNormalization(%o, %x, @g1, @e1) {axis = 1, "),),
        (("%o, %x, @g1", "%o, %x, %g"), ("%mask: bool[b, 1, 1, s]", "%mask: bool[b, 1, 1, s], %g: f32[64]")),
        (("%o, %x, @g1", "%o, %r, @g1"), ("%mask: bool[b, 1, 1, s]", "%mask: bool[b, 1, 1, s], %r: f32[1, 1, 64]")),
    ],
    ids=["of two axes", "by what is computed", "of a sum that broadcasts"],
)  # fmt: skip
def test_other_norms_are_not_fused(change: tuple[tuple[str, str], ...]) -> None:
    # Norms of two axes have scales of two: the text is not checked for it.
    assert ops(fuse(ir(changed(*change)), VNNI)) == [
        *WHOLE[:3],
        "tersor.AddLayerNormalization",
        *WHOLE[3:],
    ]


def test_layers_that_read_different_rows_are_not_merged() -> None:
    fused = fuse(
        ir(changed(("Linear(%x, @wv, @bv)", "Linear(%z, @wv, @bv)"), ("%mask: bool", "%z: f32[b, s, 64], %mask: bool"))),
        AMX,
    )  # fmt: skip
    assert ops(fused) == ["tvm.Linear"] * 3 + WHOLE[1:]
    attention = list(fused.nodes)[3]
    assert None not in attention.inputs
    assert attention.attrs["dtype"] == "float32"


@pytest.mark.parametrize(
    ("isa", "whole", "in_float"),
    [(AMX, "bfloat16", "float32"), (VNNI, "float32", "float32"), (AVX2, "int16", "float32")],
    ids=["amx", "vnni", "avx2"],
)
def test_attention_between_int8_layers_multiplies_what_is_fastest(
    isa: Isa, whole: str, in_float: str
) -> None:
    graph = ir(LAYER)
    for given, dtype in ((quantized(graph), whole), (graph, in_float)):
        fused = fuse(given, isa)
        (attention,) = (n for n in fused.nodes if n.op == "tvm.Attention")
        assert attention.attrs["dtype"] == dtype
        (packed,) = (v for v in attention.inputs[:3] if v is not None)
        assert packed.tensor.dtype is (DType.U16 if dtype == "bfloat16" else DType.F32)


def test_a_layer_that_another_node_reads_is_not_merged() -> None:
    fused = fuse(ir(changed(("(y = %y)", "(y = %y, k = %k)"))), VNNI)
    assert ops(fused) == ["tvm.Linear"] * 3 + WHOLE[1:]


def of_width(n: int) -> str:
    """A layer with as many neurons."""
    return changed(
        ("@w1: f32[64, 144]", f"@w1: f32[64, {n}]"), ("@w2: f32[144, 64]", f"@w2: f32[{n}, 64]"),
        ("@b1: f32[144]", f"@b1: f32[{n}]"), ("%h: f32[b, s, 144]", f"%h: f32[b, s, {n}]"),
    )  # fmt: skip


# The second half reads what the first half's norm makes, times a vector.
SMOOTHED = changed(
    ("@b1: f32[144]", "@b1: f32[144]\n  @s: f32[64]"),
    ("%h: f32[b, s, 144] = tersor.Linear(%n", "%m: f32[b, s, 64] = Mul(@s, %n)\n  %h: f32[b, s, 144] = tersor.Linear(%m"),
)  # fmt: skip


def test_the_kernel_that_quantizes_rows_smooths_them() -> None:
    fused = fuse(quantized(ir(SMOOTHED)), AMX)
    assert ops(fused) == WHOLE
    output, neurons = list(fused.nodes)[2:4]
    assert output.inputs[7] is not None and output.inputs[7].name == "s"
    assert neurons.attrs["quantized"] == 1
    assert ops(fuse(ir(SMOOTHED), AMX)) == [*WHOLE[:3], "Mul", *WHOLE[3:]]  # in float


@pytest.mark.parametrize(
    "change",
    [
        ("@s: f32[64]", "@s: f32[1]"),
        ("Mul(@s, %n)", "Mul(@s, %x)"),
        ("Mul(@s, %n)", "Add(@s, %n)"),
    ],
    ids=["by one number", "of no kernel's result", "a sum"],
)
def test_other_factors_are_kept(change: tuple[str, str]) -> None:
    fused = fuse(quantized(ir(changed(change, text=SMOOTHED))), AMX)
    assert ops(fused) == [*WHOLE[:3], change[1][:3] if "(" in change[1] else "Mul", *WHOLE[3:]]


def test_rows_that_are_read_quantized_are_not_smoothed_for_another() -> None:
    text = changed(
        ("(y = %y)", "(y = %y, z = %z)"), ("  %m:", "  %z: f32[b, s, 64] = tersor.Linear(%n, @wq)\n  %m:"),
        text=SMOOTHED,
    )  # fmt: skip
    fused = fuse(quantized(ir(text)), AMX)
    assert ops(fused) == [*WHOLE[:3], "tvm.Linear", "Mul", *WHOLE[3:]]


def test_a_layer_of_less_than_a_panel_is_not_fused() -> None:
    assert ops(fuse(ir(of_width(24)), VNNI)) == [*WHOLE[:3], "tersor.Linear", "tvm.Linear"]
    assert ops(fuse(ir(of_width(33)), VNNI)) == WHOLE


def test_int8_rows_of_less_than_a_vector_are_not_fused() -> None:
    assert ops(fuse(quantized(ir(of_width(9))), VNNI)).count("tersor.Linear") == 2


def test_a_row_of_partial_vectors_is_normalized_separately() -> None:
    text = """graph main(%x: f32[b, 64], %r: f32[b, 40]) -> (y = %y) {
  @w: f32[64, 40]
  @g: f32[40]
  %o: f32[b, 40] = tersor.Linear(%x, @w)
  %y: f32[b, 40] = tersor.AddRMSNormalization(%o, %r, @g) {epsilon = 1e-5}
}"""
    assert ops(fuse(ir(text), VNNI)) == ["tvm.Linear", "tersor.AddRMSNormalization"]


def test_a_single_row_is_not_fused() -> None:
    text = "graph main(%x: f32[64]) -> (y = %y) {\n  @w: f32[64, 64]\n  %y: f32[64] = tersor.Linear(%x, @w)\n}"
    assert ops(fuse(ir(text), VNNI)) == ["tersor.Linear"]


def _encoded(graph: Graph, encoding: Encoding) -> Graph:
    """The graph with its first layer's weight encoded."""
    (weight,) = (v for v in graph.constants.values() if v.name == "w")
    graph.set_encoding(weight, encoding)
    return graph


ONE = """graph main(%x: f32[n, 64]) -> (y = %y) {
  @w: f32[64, 32]
  %z: f32[n, 64] = Relu(%x)
  %y: f32[n, 32] = tersor.Linear(%z, @w)
}"""
OF_INPUT = changed(("  %z: f32[n, 64] = Relu(%x)\n", ""), ("%z, @w", "%x, @w"), text=ONE)


@pytest.mark.parametrize("text", [ONE, OF_INPUT], ids=["of a node", "of an input"])
def test_float_rows_are_multiplied_by_decoded_int8_weights(text: str) -> None:
    """Weights that are int8 for size only are multiplied in float, by the kernel of floats."""
    values = np.ones((64, 32), np.int8)
    weight = Affine(values, np.ones(32, np.float32), np.zeros(32, np.int8), 1)
    *_, linear = fuse(_encoded(ir(text), weight), VNNI).nodes
    assert (linear.op, linear.attrs["format"]) == ("tvm.Linear", "float32")


@pytest.mark.parametrize("largest", [64, 65])
def test_pairs_in_16_bits_are_for_safe_weights_only(largest: int) -> None:
    weight = np.full((64, 32), largest, np.int8)
    scale, zero = np.ones(32, np.float32), np.zeros(32, np.int8)
    graph = _encoded(quantized(ir(ONE)), Affine(weight, scale, zero, 1))
    for isa in (VNNI, AMX, Isa(8, "widen", 2), Isa(4, "lane", 2)):
        module, _ = lower(fuse(graph, isa), {**RULES, **fused.rules(isa)})
        kernels = [
            v.name_hint for v in module.get_global_vars() if v.name_hint.startswith("linear")
        ]
        assert len(kernels) == 1
        assert kernels[0].endswith("safe") == (isa.dot == "widen" and largest == 64)


@pytest.mark.parametrize(
    "weight",
    [
        Affine(np.ones((64, 32), np.int8), np.float32(1).reshape(()), np.int8(0).reshape(())),
        Affine(np.ones((64, 32), np.int8), np.ones(32, np.float32), np.ones(32, np.int8), 1),
        Affine(np.ones((64, 32), np.int8), np.ones((2, 32), np.float32), np.zeros((2, 32), np.int8), 0, 32),
        Affine(np.ones((64, 32), np.uint8), np.ones(32, np.float32), np.zeros(32, np.uint8), 1),
    ],
    ids=["one scale", "zero points", "blocks", "unsigned"],
)  # fmt: skip
def test_other_forms_of_int8_weights_are_not_fused(weight: Affine) -> None:
    graph = _encoded(quantized(ir(ONE)), weight)
    assert ops(fuse(graph, VNNI)) == [
        "Relu",
        "tersor.DynamicQuantizeRows",
        "DequantizeLinear",
        "tersor.Linear",
    ]


def test_rows_with_other_scales_are_floats() -> None:
    graph = quantized(ir(ONE))
    dequantize = next(n for n in graph.nodes if n.op == "DequantizeLinear")
    scale = graph.emit("Neg", [dequantize.inputs[1]])
    graph.set_input(dequantize, 1, scale)
    (linear,) = [n for n in fuse(graph, VNNI).nodes if n.op == "tvm.Linear"]
    assert linear.attrs["format"] == "float32"


@pytest.mark.parametrize(
    "change",
    [
        (("%mask: bool", "%mask: f32"),),
        (("%mask: bool[b, 1, 1, s]", "%mask: bool[b, 1, s, s]"),),
        (("%mask: bool[b, 1, 1, s]", "%mask: f32[s, s]"),),
        (("kv_num_heads = 2}", "kv_num_heads = 2, softcap = 5.0}"),),
    ],
    ids=["added mask", "mask for each query", "mask of two axes", "soft cap"],
)  # fmt: skip
def test_attention_of_any_form_has_the_kernel(change: tuple[tuple[str, str], ...]) -> None:
    assert ops(fuse(ir(changed(*change)), VNNI)) == WHOLE


CAUSAL = changed(
    ("%mask: bool[b, 1, 1, s]", "%mask: bool[b, 1, 1, s], %len: i64[]"),
    ("%v, %mask)", "%v, %both)"),
    ("  %q: f32", """  @zero: i64[] = dense [0]
  @one: i64[] = dense [1]
  @down: i64[3] = dense [0, 1, 3]
  @along: i64[3] = dense [0, 1, 2]
  %c: i64[s] = Range(@zero, %len, @one)
  %i: i64[1, 1, s, 1] = Unsqueeze(%c, @down)
  %j: i64[1, 1, 1, s] = Unsqueeze(%c, @along)
  %causal: bool[1, 1, s, s] = LessOrEqual(%j, %i)
  %both: bool[b, 1, s, s] = And(%causal, %mask)
  %q: f32"""),
)  # fmt: skip


def test_a_mask_over_positions_becomes_a_window() -> None:
    fused = fuse(ir(CAUSAL), VNNI)
    assert ops(fused) == WHOLE
    attention = list(fused.nodes)[1]
    assert attention.attrs["right_window_size"] == 0
    assert attention.inputs[3] is fused.inputs[1]
    alone = fuse(ir(CAUSAL.replace("%v, %both)", "%v, %causal)")), VNNI)
    assert list(alone.nodes)[1].input(3) is None


PAST = (
    ("%v, %mask)", "%v, %mask, %pk, %pv)"),
    ("%mask: bool[b, 1, 1, s]", "%mask: bool[b, 1, 1, t], %pk: f32[b, 2, p, 32], %pv: f32[b, 2, p, 32]"),
)  # fmt: skip


def test_layers_of_attention_with_a_past_are_not_merged() -> None:
    fused = fuse(ir(changed(*PAST)), VNNI)
    assert ops(fused) == ["tvm.Linear"] * 3 + WHOLE[1:]


@pytest.mark.parametrize(
    "change",
    [
        (("(y = %y)", "(y = %y, z = %z)"),
         ("%a: f32[b, s, 64] =", "%a: f32[b, s, 64], %pk: f32[b, 2, s, 32], %pv: f32[b, 2, s, 32], %z: f32[b, 2, s, s] =")),
        (("%mask: bool[b, 1, 1, s]", "%mask: bool[?, 1, 1, s]"),),
        (("%mask: bool[b, 1, 1, s]", "%mask: bool[1, b, 1, 1, s]"),),
    ],
    ids=["scores that are read", "a dim without a name", "a mask of five axes"],
)  # fmt: skip
def test_other_attention_is_not_fused(change: tuple[tuple[str, str], ...]) -> None:
    assert "Attention" in ops(fuse(ir(changed(*change)), VNNI))


# -- what is computed ------------------------------------------------------------------------------


def run(graph: Graph, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs a graph by this machine's kernels, with attention in float32."""
    features = Target.host().features - {"amx_bf16"}
    assert "amx_int8" not in features or request_amx()
    isa = Isa.of(features, 2)
    module, parameters = lower(fuse(graph, isa), {**RULES, **fused.rules(isa)})
    machine = tvm.relax.VirtualMachine(compile_module(module, tvm_target(features, 2)), tvm.cpu())
    given = [feed[value.name] for value in graph.inputs] + parameters
    outputs = machine[MAIN](*(tvm.runtime.tensor(np.array(a, order="C")) for a in given))
    return dict(zip(graph.output_names, (tensor.numpy() for tensor in outputs), strict=True))


def feed(batch: int, length: int) -> dict[str, np.ndarray]:
    """Inputs in which every entry but the first lacks its last keys."""
    mask = np.arange(length) < length - 2 * np.arange(batch)[:, None]
    mask[:, 0] = True
    x = np.random.default_rng(length).standard_normal((batch, length, 64)).astype(np.float32)
    return {"x": x, "mask": mask[:, None, None]}


def expected(graph: Graph, given: dict[str, np.ndarray]) -> dict[str, Any]:
    choice = ort.Choice(ort.LowerOptions(portable=True))
    return ort.open_session(ort.build(graph, choice), choice).run(given)


# A layer's own result, what the norm makes of it, and both; the second layer's, which is quantized.
MIDDLE = changed(("(y = %y)", "(y = %y, n = %n, o = %o, h = %h, a = %a)"))


# Two heads of 28, and values of 20.
ODD = changed(
    ("@wq: f32[64, 64]", "@wq: f32[64, 56]"), ("@wk: f32[64, 64]", "@wk: f32[64, 56]"),
    ("@wv: f32[64, 64]", "@wv: f32[64, 40]"), ("@wo: f32[64, 64]", "@wo: f32[40, 64]"),
    ("@bq: f32[64]", "@bq: f32[56]"), ("@bv: f32[64]", "@bv: f32[40]"),
    ("%q: f32[b, s, 64]", "%q: f32[b, s, 56]"), ("%k: f32[b, s, 64]", "%k: f32[b, s, 56]"),
    ("%v: f32[b, s, 64]", "%v: f32[b, s, 40]"), ("%a: f32[b, s, 64]", "%a: f32[b, s, 40]"),
)  # fmt: skip


@pytest.mark.parametrize("text", [MIDDLE, ODD], ids=["with outputs in the middle", "odd heads"])
def test_float_layers_agree_with_the_runtime(text: str) -> None:
    """The tolerance covers sums of up to 144 products of numbers of size one, in another order, in six layers."""
    graph = ir(changed(("gelu", "relu"), text=text))
    given = feed(2, 37)
    got = run(graph, given)
    for name, want in expected(graph, given).items():
        np.testing.assert_allclose(got[name], want, rtol=0, atol=2e-5, err_msg=name)


def test_heads_of_any_size_are_five_ops() -> None:
    assert ops(fuse(ir(ODD), VNNI)) == WHOLE
    assert ops(fuse(quantized(ir(ODD)), AMX)) == WHOLE


@pytest.mark.parametrize(
    "text",
    [LAYER, MIDDLE, SMOOTHED, ODD],
    ids=["a layer", "with outputs in the middle", "smoothed", "odd heads"],
)
def test_int8_layers_agree_with_the_runtime(text: str) -> None:
    """A number between two levels may be rounded either way; a level is 1/255 of a row's range."""
    graph = quantized(ir(text))
    given = feed(3, 29)
    got = run(graph, given)
    for name, want in expected(graph, given).items():
        cosine = (got[name] * want).sum(-1)
        cosine /= np.linalg.norm(got[name], axis=-1) * np.linalg.norm(want, axis=-1)
        assert cosine.mean() > 0.9999, name
        assert cosine.min() > 0.999, name
        np.testing.assert_allclose(got[name], want, rtol=0, atol=0.05 * np.abs(want).max())
