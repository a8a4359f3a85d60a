"""CUDA: what is held in float16, what is compiled here without a GPU, what is refused, and a run on one."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm import relax, tirx  # noqa: E402

import tersor  # noqa: E402
from tersor.backends.tvm import cuda, library, open_session  # noqa: E402
from tersor.backends.tvm.build import build  # noqa: E402
from tersor.backends.tvm.half import halve  # noqa: E402
from tersor.backends.tvm.module import MAIN, lower  # noqa: E402
from tersor.backends.tvm.options import Choice  # noqa: E402
from tersor.backends.tvm.pipeline import compile_module, tvm_target  # noqa: E402
from tersor.built import Built, main_file  # noqa: E402
from tersor.errors import InvalidModel, Unsupported  # noqa: E402
from tersor.ir import Affine, DType, Graph, TensorType, Value, parse, symbol  # noqa: E402
from tersor.ops import TABLE  # noqa: E402
from tersor.pipeline import registry  # noqa: E402

CHOICE = Choice.of(tersor.Target.parse("cuda:sm_90"))
# float16 has 11 bits: each of a dozen roundings in a row is off by 5e-4 at most, of numbers about 1.
TOLERANCE = 1e-2
FATBIN, ELF = b"\x50\xed\x55\xba", b"\x7fELF"
NO_DEVICE = "it needs a CUDA device of sm_90; there is none here"


def layer(hidden: int, wide: int, heads: int, *, int8: bool = False) -> Graph:
    """A layer of an encoder, as the optimized MiniLM has it."""
    made, rng = TABLE.graph("layer"), np.random.default_rng(0)
    batch, length = symbol("batch"), symbol("length")

    def numbers(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    def linear(x: Value, columns: int, activation: str = "none") -> Value:
        weight: Any = numbers(x.tensor.dims[-1], columns)  # type: ignore[index,arg-type]
        if int8:
            scale = np.abs(weight).max(0) / np.float32(127)
            levels = np.rint(weight / scale).astype(np.int8)
            weight = Affine(levels, scale, np.zeros(columns, np.int8), 1)
        operands = [x, made.constant(weight, "w"), made.constant(numbers(columns), "b")]
        return made.emit("tersor.Linear", operands, {"activation": activation})

    def normalized(x: Value, residual: Value) -> Value:
        ones = made.constant(np.ones(hidden, np.float32), "gamma")
        operands = [x, residual, ones, made.constant(numbers(hidden), "beta")]
        attrs = {"axis": -1, "epsilon": 1e-12}
        return made.emit("tersor.AddLayerNormalization", operands, attrs)

    x = made.add_input("x", TensorType(DType.F32, (batch, length, hidden)))
    mask = made.add_input("mask", TensorType(DType.BOOL, (batch, 1, 1, length)))
    q, k, v = (linear(x, hidden) for _ in range(3))
    counts = {"q_num_heads": heads, "kv_num_heads": heads}
    attended = linear(made.emit("Attention", [q, k, v, mask], counts), hidden)
    middle = normalized(attended, x)
    y = normalized(linear(linear(middle, wide, "gelu"), hidden), middle)
    made.set_outputs([y], ["y"])
    return made


def feeds(hidden: int, batch: int = 2, length: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = np.ones((batch, 1, 1, length), bool)
    mask[0, ..., length // 2 :] = False
    return {"x": rng.standard_normal((batch, length, hidden)).astype(np.float32), "mask": mask}


def reference(graph: Graph, feed: dict[str, np.ndarray]) -> np.ndarray:
    ort = registry.backend("ort")
    return np.asarray(ort.open_session(ort.build(graph)).run(feed)["y"])


# -- what is held in float16 -----------------------------------------------------------------------


def halved(text: str) -> str:
    """Ops and types of a graph's nodes after ``halve``."""
    nodes = halve(parse(text, TABLE)).nodes
    return " ".join(f"{n.op}:{n.output.tensor.dtype.value}" for n in nodes)


def test_products_and_what_follows_them_are_float16() -> None:
    text = """graph g(%x: f32[b, 8], %w: f32[8, 8]) -> (y = %s) {
        %m: f32[b, 8] = MatMul(%x, %w)
        %r: f32[b, 8] = Relu(%m)
        %s: f32[b, 8] = Softmax(%r) {axis=-1}
    }"""
    assert halved(text) == "Cast:f16 Cast:f16 MatMul:f16 Relu:f16 Softmax:f16 Cast:f32"


def test_what_no_product_feeds_stays_float32() -> None:
    text = """graph g(%x: f32[b, 8], %p: f32[b, 8]) -> (y = %s) {
        %a: f32[b, 8] = Add(%x, %p)
        %e: f32[b, 8] = Exp(%a)
        %s: f32[b, 1] = ReduceSum(%e) {keepdims=1}
    }"""
    assert halved(text) == "Add:f32 Exp:f32 ReduceSum:f32"


def test_a_mask_beyond_the_range_of_float16_stays_float32() -> None:
    made = TABLE.graph("masked")
    x = made.add_input("x", TensorType(DType.F32, (4, 4)))
    low = made.constant(np.full(4, np.finfo(np.float32).min), "low")
    scores = made.emit("Add", [made.emit("MatMul", [x, x]), low])
    made.set_outputs([made.emit("MatMul", [made.emit("Softmax", [scores]), x])], ["y"])
    types = {n.op: n.output.tensor.dtype for n in halve(made).nodes}
    assert types["Add"] is types["Softmax"] is DType.F32
    assert types["MatMul"] is DType.F16


def test_int8_weights_stay_int8_parameters() -> None:
    _, parameters = lower(halve(layer(64, 128, 2, int8=True)), cuda.GPU_RULES)
    matrices = [p for p in parameters if p.ndim > 1]
    assert [(p.dtype, p.shape) for p in matrices] == [
        (np.int8, (64, 64)), (np.int8, (64, 64)), (np.int8, (64, 64)), (np.int8, (64, 64)),
        (np.int8, (64, 128)), (np.int8, (128, 64)),
    ]  # fmt: skip


@pytest.mark.parametrize("int8", [False, True])
def test_the_halved_graph_computes_what_the_graph_does(int8: bool) -> None:
    """On the processor, by the same rules."""
    graph, feed = layer(64, 128, 2, int8=int8), feeds(64)
    module, parameters = lower(halve(graph), cuda.GPU_RULES)
    features = sorted(tersor.Target.host().features)
    machine = "aarch64" if "neon" in features else "x86_64"
    executable = compile_module(module, tvm_target(features, 1, machine))
    main = relax.VirtualMachine(executable, tvm.cpu())[MAIN]
    arrays = [feed["x"], feed["mask"], *parameters]
    (y,) = main(*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays))
    expected = reference(graph, feed)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=TOLERANCE)
    assert np.abs(y.numpy() - expected).max() > 0  # float32 throughout would agree better.


# -- refusals --------------------------------------------------------------------------------------


def refuses(text: str, message: str) -> None:
    with pytest.raises(Unsupported) as caught:
        lower(halve(parse(text, TABLE)), cuda.GPU_RULES)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_ops_for_processors_alone_are_refused_with_a_reason() -> None:
    refuses(
        """graph g(%x: f32[4, 3], %i: i64[2, 3], %u: f32[2, 3]) -> (y = %y) {
            %y: f32[4, 3] = ScatterElements(%x, %i, %u)
        }""",
        "(ScatterElements): updates come one after the other, which no schedule for CUDA takes",
    )
    refuses(
        """graph g(%x: f32[5, 2, 3], %w: f32[1, 16, 3], %r: f32[1, 16, 4]) -> (y = %y) {
            %y: f32[5, 1, 2, 4] = LSTM(%x, %w, %r) {hidden_size=4}
        }""",
        "(LSTM): its kernel is written for processors, not for CUDA",
    )
    refuses(
        """graph g(%x: f32[2, 8], %k: i64[1]) -> (y = %y) {
            %y: f32[2, ?], %i: i64[2, ?] = TopK(%x, %k)
        }""",
        "(TopK): TVM sorts on the processor only",
    )


def test_without_a_compiler_of_cuda_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda.tvm_ffi, "__version__", "0.1.14.post1")
    monkeypatch.setattr(cuda.shutil, "which", lambda name: None)
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported) as caught:
        cuda.check_tools()
    assert str(caught.value) == (
        "building for CUDA takes nvcc or NVRTC, and neither is there: install the CUDA toolkit, or the "
        "package cuda-bindings"
    )


def test_versions_that_crash_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.tvm_ffi, "__version__", "0.1.15.post2")
    with pytest.raises(Unsupported, match=r"install 'apache-tvm-ffi<0\.1\.15'\Z"):
        cuda.check_tools()


class _Device:
    exist, compute_version = True, "8.6"


def test_a_library_for_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.tvm, "cuda", lambda index: _Device())
    with pytest.raises(InvalidModel) as caught:
        library.check_host(library.Description([], [], ("sm_90",)))
    assert str(caught.value) == "it needs a CUDA device of sm_90; the one here has 8.6"
    library.check_host(library.Description([], [], ("sm_80",)))
    with pytest.raises(
        InvalidModel, match=r"it needs a CUDA device of sm_80a; the one here has 8\.6"
    ):
        library.check_host(library.Description([], [], ("sm_80a",)))


def test_machine_code_is_read_where_tvm_would_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_compile_source", lambda source: f"compiled {source}".encode())
    compile_source = tvm.get_global_func("tvm_callback_cuda_compile")
    code = "// machine code: " + base64.b64encode(b"\0code").decode()
    assert bytes(compile_source(code)) == b"\0code"
    assert bytes(compile_source("int x;")) == b"compiled int x;"


# -- building here ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tools() -> None:
    try:
        cuda.check_tools()
    except Unsupported as error:
        pytest.skip(str(error))


def built_and_scheduled(graph: Graph) -> tuple[Built, tvm.IRModule]:
    """What is built, and its functions as they were scheduled."""
    seen: list[tvm.IRModule] = []

    @tvm.transform.module_pass(opt_level=0)
    def scheduled(module: tvm.IRModule, context: object) -> tvm.IRModule:
        seen.append(own(module))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        own = cuda.schedule
        patch.setattr(cuda, "schedule", scheduled)
        return build(graph, CHOICE), seen[0]


@pytest.fixture(scope="module")
def built(tools: None) -> tuple[Built, tvm.IRModule]:
    """A layer. The first product that TVM schedules for a GPU takes half a minute: it reads all of its
    tensor intrinsics then."""
    return built_and_scheduled(layer(80, 80, 2))


def machine_code(model: Built) -> bytes:
    (text,) = re.findall(rb"// machine code: ([A-Za-z0-9+/=]+)", library.code(main_file(model)))
    return base64.b64decode(text)


@pytest.mark.sweep
def test_a_library_holds_machine_code_for_the_device(built: tuple[Built, tvm.IRModule]) -> None:
    code = machine_code(built[0])
    if cuda.check_tools() == "nvcc":
        assert code.startswith(FATBIN) and ELF in code
    else:
        assert b".target sm_90" in code
    assert b"__global__" not in library.code(
        main_file(built[0])
    )  # No source: nothing is left to compile.
    told = library.describe(main_file(built[0]))
    assert told.features == ("sm_90",)
    assert {str(p.type.dtype) for p in told.parameters} == {"DType.F16"}
    assert [str(t) for _, t in told.outputs] == ["f32[batch, length, 80]"]


@pytest.mark.sweep
def test_everything_runs_on_the_device(built: tuple[Built, tvm.IRModule]) -> None:
    code, functions = machine_code(built[0]), dict(built[1].functions_items())
    loops = {n.name_hint: str(f) for n, f in functions.items() if isinstance(f, tirx.PrimFunc)}
    assert len(loops) > 5
    for name, text in loops.items():
        assert 'thread="threadIdx.' in text, name
        assert f"{name}_kernel".encode() in code, name


@pytest.mark.sweep
def test_products_whose_known_sizes_are_above_64_use_tensor_cores(tools: None) -> None:
    graph = TABLE.graph("linear")
    x = graph.add_input("x", TensorType(DType.F32, (symbol("rows"), 96)))
    weight, bias = (np.ones(shape, np.float32) for shape in ((96, 128), (128,)))
    operands = [x, graph.constant(weight, "w"), graph.constant(bias, "b")]
    graph.set_outputs([graph.emit("tersor.Linear", operands, {"activation": "relu"})], ["y"])
    _, module = built_and_scheduled(graph)
    loops = {n.name_hint: str(f) for n, f in module.functions_items()}
    (product,) = [text for name, text in loops.items() if name.startswith("fused_matmul")]
    assert "wmma" in product


def test_equal_graphs_give_equal_bytes(tools: None) -> None:
    graph = parse("graph g(%x: f32[n, 4]) -> (y = %y) { %y: f32[n, 4] = Add(%x, %x) }", TABLE)
    assert build(graph, CHOICE) == build(graph, CHOICE)


# -- running ---------------------------------------------------------------------------------------


def _has_device() -> bool:
    return bool(tvm.cuda(0).exist)


@pytest.mark.skipif(_has_device(), reason="there is a CUDA device")
def test_an_artifact_is_saved_and_verified_and_refused_without_a_device(
    tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    graph = parse("graph g(%x: f32[n, 4]) -> (y = %y) { %y: f32[n, 4] = Add(%x, %x) }", TABLE)
    made = tersor.convert(graph, runtime="tvm", target="cuda:sm_90")
    with pytest.raises(InvalidModel, match=NO_DEVICE):
        made.run({"x": np.ones((2, 4), np.float32)})
    made.save("out")
    assert tersor.verify("out").notes == []
    with pytest.raises(InvalidModel) as caught:
        tersor.load("out", trust=True)
    assert str(caught.value) == f"out: {NO_DEVICE}"


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not _has_device(), reason="there is no CUDA device")
@pytest.mark.parametrize("int8", [False, True])
def test_on_a_device_it_computes_what_onnx_runtime_does(tools: None, int8: bool) -> None:
    arch = "sm_" + str(tvm.cuda(0).compute_version).replace(".", "")
    graph = layer(384, 1536, 12, int8=int8)
    opened = open_session(build(graph, Choice.of(tersor.Target.parse(f"cuda:{arch}"))))
    for batch, length in ((1, 1), (2, 7), (8, 128)):
        feed = feeds(384, batch, length)
        expected = reference(graph, feed)
        np.testing.assert_allclose(opened.run(feed)["y"], expected, rtol=0, atol=TOLERANCE)
