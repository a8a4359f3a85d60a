"""Models of any size convert in memory of about their size: weights are mapped and streamed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

TILE = 1 << 20  # Elements that are made at once.


def write_model(path: Path, layers: int, shape: tuple[int, int]) -> int:
    """Linear layers one after the other, as Gemm with its weight transposed, as MatMul, and as MatMul
    of a Transpose node; weights beside the file. Returns the bytes of the weights."""
    tile = np.random.default_rng(0).standard_normal(TILE).astype(np.float32) / shape[0] ** 0.5
    nodes, tensors, value, offset = [], [], "x", 0
    with path.with_suffix(".data").open("wb") as file:
        for i in range(layers):
            count = shape[0] * shape[1]
            for start in range(0, count, TILE):
                file.write(np.roll(tile, 31 * i + start // TILE)[: count - start].tobytes())
            tensor = TensorProto(
                name=f"w{i}", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL
            )  # fmt: skip
            place = {
                "location": path.with_suffix(".data").name,
                "offset": offset,
                "length": 4 * count,
            }
            for key, entry in place.items():
                tensor.external_data.add(key=key, value=str(entry))
            tensors.append(tensor)
            offset += 4 * count
            nodes += _layer(i, value)
            value = f"y{i}"
    dims = ["batch", shape[1]]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, dims)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return offset


def _layer(i: int, value: str) -> list[onnx.NodeProto]:
    """x [.., n] -> [.., m] by w^T where i is even, back by w where it is odd."""
    if i % 2:
        return [helper.make_node("MatMul", [value, f"w{i}"], [f"y{i}"])]
    if i % 4:
        return [helper.make_node("Gemm", [value, f"w{i}"], [f"y{i}"], transB=1)]
    return [
        helper.make_node("Transpose", [f"w{i}"], [f"t{i}"], perm=[1, 0]),
        helper.make_node("MatMul", [value, f"t{i}"], [f"y{i}"]),
    ]


# Runs the command in this process and tells its largest memory: of its own, and with mapped files,
# which the system may drop at any time.
MEASURED = """
import json, resource, sys, threading, time
from tersor.frontends.onnx import split
split.INLINE_BYTES = min(split.INLINE_BYTES, int(sys.argv[1]))
own = 0
def watch():
    global own
    while True:
        with open("/proc/self/status") as file:
            own = max(own, *(int(l.split()[1]) << 10 for l in file if l.startswith("RssAnon")))
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
from tersor.cli.main import app
time.sleep(0.05)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
try:
    app(sys.argv[2:], prog_name="tersor")
except SystemExit as done:
    assert not done.code
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps({"before": before, "peak": peak, "own": own}), file=sys.stderr)
"""


def convert(given: Path, out: Path, inline: int) -> dict[str, int]:
    command = [sys.executable, "-c", MEASURED, str(inline), "convert", str(given), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stderr.splitlines()[-1])
    return found


def same_outputs(given: Path, out: Path, columns: int) -> None:
    feed = {"x": np.random.default_rng(1).standard_normal((2, columns)).astype(np.float32)}
    settings = ort.SessionOptions()
    # Repacked copies of the weights would double what the sessions take.
    settings.add_session_config_entry("session.disable_prepacking", "1")
    a, b = (ort.InferenceSession(str(p), settings).run(None, feed)[0] for p in (given, out))
    # Sums of thousands of products in another order, layer after layer.
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(np.abs(np.asarray(a)).max()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux tells it")
def test_weights_are_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    given, out = tmp_path / "given.onnx", tmp_path / "out.onnx"
    size = write_model(given, 12, (2048, 2048))
    assert size == 12 << 24
    used = convert(given, out, 1 << 20)
    # One layer, and what libraries take when they begin to work: far from all twelve.
    assert used["own"] - used["before"] < 0.5 * size
    assert used["peak"] - used["before"] < 1.5 * size
    assert [p.stat().st_size for p in tmp_path.glob("weights-*.bin")] == [size]
    same_outputs(given, out, 2048)


@pytest.mark.big
def test_a_model_over_2_gb_converts_in_one_and_a_half_times_its_size(tmp_path: Path) -> None:
    given, out = tmp_path / "given.onnx", tmp_path / "out.onnx"
    size = write_model(given, 20, (8192, 4096))
    assert size > 2_500_000_000
    start = time.perf_counter()
    used = convert(given, out, 1 << 40)
    seconds = time.perf_counter() - start
    print(f"{size / 1e9:.2f} GB: {seconds:.0f} s, peak {used['peak'] / 1e9:.2f} GB, of that its own "
          f"{used['own'] / 1e9:.2f} GB")  # fmt: skip
    assert used["peak"] < 1.5 * size
    assert [p.stat().st_size for p in tmp_path.glob("weights-*.bin")] == [size]
    same_outputs(given, out, 4096)
