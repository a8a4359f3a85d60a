"""Artifacts on disk: what is written, what is refused, what survives."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tersor
from tersor.built import ALIGNMENT, Split, Weights
from tersor.cli.main import app
from tersor.errors import InvalidModel, InvalidOption
from tersor.files import storage
from tersor.frontends.onnx import external_data, import_model, read_built
from tersor.pipeline.report import INPUT
from tersor.tuning.measure import Bench, Paired

FEED = {"x": np.random.default_rng(9).standard_normal((2, 64)).astype(np.float32)}


def model(seed: int = 0, layers: int = 2) -> onnx.ModelProto:
    """y = relu(x W1^T + b1) W2 ..., on x[batch, 64]: Gemm (transposed) and MatMul in turn."""
    rng = np.random.default_rng(seed)
    nodes, held, value = [], {}, "x"
    for i in range(layers):
        held[f"w{i}"] = rng.standard_normal((64, 64)).astype(np.float32) / 8
        held[f"b{i}"] = rng.standard_normal(64).astype(np.float32)
        if i % 2 == 0:
            operands = [value, f"w{i}", f"b{i}"]
            nodes.append(helper.make_node("Gemm", operands, [f"s{i}"], transB=1))
        else:
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"p{i}"]))
            nodes.append(helper.make_node("Add", [f"p{i}", f"b{i}"], [f"s{i}"]))
        value = f"r{i}"
        nodes.append(helper.make_node("Relu", [f"s{i}"], [value]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(v, k) for k, v in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outputs(path: Path | bytes) -> np.ndarray:
    source = str(path) if isinstance(path, Path) else path
    return np.asarray(ort.InferenceSession(source).run(None, FEED)[0])


def artifact(seed: int = 0) -> tersor.Artifact:
    made = tersor.compile(model(seed), recipe="fp32", measure=False)
    made.files["tokenizer.json"] = json.dumps({"seed": seed}).encode()
    return made


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are stored next to the model from 1 kB on."""
    monkeypatch.setattr("tersor.frontends.onnx.split.INLINE_BYTES", 1000)


def listing(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# -- models in two files -------------------------------------------------------------------------


def test_weights_beside_the_model_give_the_same_numbers(split: None, tmp_path: Path) -> None:
    made = artifact()
    assert isinstance(made.model, Split)
    saved = made.save(tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", made.model.weights.name]
    # Sums of 64 products in another order.
    np.testing.assert_allclose(
        outputs(saved), outputs(model().SerializeToString()), rtol=0, atol=1e-5
    )
    (y,) = made.run(FEED).values()
    np.testing.assert_array_equal(y, outputs(saved))
    assert made.report.size_after == sum(p.stat().st_size for p in tmp_path.iterdir())
    graph = import_model(saved)
    with Bench([FEED]) as bench:
        worker = bench.start("ort", made.model, made.choice)
        np.testing.assert_array_equal(worker.outputs(0)[graph.output_names[0]], y)


def test_weights_lie_on_whole_pages_and_only_small_ones_in_the_model(split: None) -> None:
    made = artifact()
    assert isinstance(made.model, Split)
    proto = onnx.load_from_string(made.model.data)
    places = {
        t.name: {e.key: e.value for e in t.external_data}
        for t in proto.graph.initializer
        if t.data_location == TensorProto.EXTERNAL
    }
    assert len(places) == 2  # the two matrices; the biases are small
    assert all(int(p["offset"]) % ALIGNMENT == 0 for p in places.values())
    assert {p["location"] for p in places.values()} == {made.model.weights.name}
    data = b"".join(made.model.weights.chunks())
    assert len(data) == made.model.weights.size


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        np.arange(24, dtype=np.float64).reshape(2, 3, 4).T,
        np.arange(60, dtype=np.uint8).reshape(3, 4, 5).transpose(1, 0, 2)[:, ::2],
        np.broadcast_to(np.arange(4, dtype=np.int32), (5, 4)),
        np.empty((0, 3), np.float32),
        np.float16(3).reshape(()),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_pieces_are_the_array_in_c_order(
    array: np.ndarray, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.built.CHUNK", chunk)
    weights = Weights((np.ones(3, np.uint8), array))
    data = b"".join(weights.chunks())
    assert data[:3] == b"\1\1\1" and data[weights.offsets[1] :] == array.tobytes()
    assert len(data) == weights.size


def test_narrow_weights_and_those_of_subgraphs_go_beside_the_model(
    split: None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
    )
    packed = helper.make_tensor(
        "q", TensorProto.INT4, [128, 64], rng.bytes(128 * 64 // 2), raw=True
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["z"]),
        ],
        "narrow",
        [info("x", TensorProto.FLOAT, [2, 64]), info("c", TensorProto.BOOL, [])],
        [info("y", TensorProto.FLOAT, None), info("z", TensorProto.FLOAT, None)],
        [packed, numpy_helper.from_array(np.float32(0.5), "scale")],
    )
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    made = tersor.convert(given, [])
    assert isinstance(made.model, Split)
    assert (
        made.model.weights.size == ALIGNMENT + weight.nbytes
    )  # the int4 ones are before: 4096 bytes
    feed = {**FEED, "c": np.array(True)}
    expected = ort.InferenceSession(given.SerializeToString()).run(None, feed)
    saved = made.save(tmp_path / "out.onnx")
    got = ort.InferenceSession(str(saved)).run(None, feed)
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_input_with_weights_beside_it_is_read_and_kept(split: None, tmp_path: Path) -> None:
    given = tmp_path / "given.onnx"
    onnx.save(model(), given, save_as_external_data=True, location="given.data", size_threshold=64)
    kept = read_built(given)
    assert isinstance(kept, Split)
    (tmp_path / "out").mkdir()
    path = kept.place(tmp_path / "out", "kept.onnx")
    np.testing.assert_array_equal(outputs(path), outputs(given))
    converted = tersor.convert(given).save(tmp_path / "out" / "out.onnx")
    np.testing.assert_allclose(outputs(converted), outputs(given), rtol=0, atol=1e-5)


def test_weights_that_change_while_they_are_written_are_noticed(
    split: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "MIN_MAPPED", 0)  # As if they were large.
    given = tmp_path / "given.onnx"
    onnx.save(model(), given, save_as_external_data=True, location="given.data", size_threshold=64)
    made = tersor.convert(given)
    data = bytearray((tmp_path / "given.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "given.data").write_bytes(data)
    with pytest.raises(InvalidModel, match="the weights are others than a moment ago"):
        made.save(tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given.data", "given.onnx"]


# -- what is replaced, and what goes -------------------------------------------------------------


@pytest.mark.usefixtures("split")
def test_a_new_model_takes_the_old_ones_weights_with_it(tmp_path: Path) -> None:
    (tmp_path / "weights-0123456789abcdef.bin").write_bytes(b"someone's")
    (tmp_path / "mine.bin").write_bytes(b"mine")
    artifact(1).save(tmp_path / "out.onnx")
    second = artifact(2)
    second.save(tmp_path / "out.onnx")
    assert isinstance(second.model, Split)
    assert {p.name for p in tmp_path.iterdir()} == {
        "out.onnx", "mine.bin", "weights-0123456789abcdef.bin", second.model.weights.name,
    }  # fmt: skip


@pytest.mark.usefixtures("split")
def test_weights_that_another_model_names_stay(tmp_path: Path) -> None:
    artifact(1).save(tmp_path / "one.onnx")
    artifact(1).save(tmp_path / "same.onnx")
    artifact(2).save(tmp_path / "one.onnx")
    assert len(list(tmp_path.glob("weights-*.bin"))) == 2
    np.testing.assert_array_equal(
        outputs(tmp_path / "same.onnx"), next(iter(artifact(1).run(FEED).values()))
    )


@pytest.mark.usefixtures("split")
def test_a_model_can_replace_the_one_it_was_made_of(tmp_path: Path) -> None:
    path = artifact().save(tmp_path / "m.onnx")
    before = outputs(path)
    tersor.convert(path).save(path)
    tersor.compile(path, recipe="int8", measure=False).save(path)
    # 8 bits of weights and activations in two layers; outputs are about 1.
    np.testing.assert_allclose(outputs(path), before, rtol=0, atol=0.1)
    assert (outputs(path) != before).any()
    assert len(list(tmp_path.iterdir())) == 2


def test_an_artifact_survives_its_folder(tmp_path: Path) -> None:
    made = tersor.compile(model(), recipe="int8", measure=False)
    made.files["tokenizer.json"] = b"{}"
    again = tersor.load(made.save(tmp_path / "out"))
    (y,), (expected,) = again.run(FEED).values(), made.run(FEED).values()
    np.testing.assert_array_equal(y, expected)
    assert again.report == made.report and again.files == {"tokenizer.json": b"{}"}
    assert again.manifest == json.loads(json.dumps(made.manifest))
    assert again.save(tmp_path / "again").name == "again"
    assert listing(tmp_path / "again") == listing(tmp_path / "out")


@pytest.mark.usefixtures("split")
def test_an_artifact_in_two_files_survives_its_folder(tmp_path: Path) -> None:
    made = artifact()
    again = tersor.load(made.save(tmp_path / "out"))
    assert isinstance(again.model, Split) and isinstance(made.model, Split)
    assert again.model.weights.name == made.model.weights.name
    (y,), (expected,) = again.run(FEED).values(), made.run(FEED).values()
    np.testing.assert_array_equal(y, expected)
    again.save(tmp_path / "again")
    assert listing(tmp_path / "again") == listing(tmp_path / "out")
    again.save(tmp_path / "out")  # over the files that its weights are mapped from
    assert listing(tmp_path / "again") == listing(tmp_path / "out")
    held = tersor.load(tmp_path / "out")
    artifact(2).save(tmp_path / "out")  # which removes what is mapped
    (y,) = held.run(FEED).values()
    np.testing.assert_array_equal(y, expected)


@pytest.mark.usefixtures("split")
def test_weights_that_vanish_while_a_session_opens_are_still_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact()
    held = tersor.load(made.save(tmp_path / "out"))
    is_in_place = Weights.is_in_place

    def then_replaced(weights: Weights) -> bool:
        found = is_in_place(weights)
        if found:
            artifact(2).save(tmp_path / "out")  # as another process may, at this moment
        return found

    monkeypatch.setattr(Weights, "is_in_place", then_replaced)
    (y,), (expected,) = held.run(FEED).values(), made.run(FEED).values()
    np.testing.assert_array_equal(y, expected)


@pytest.mark.usefixtures("split")
def test_commands_take_artifacts_in_two_files(tmp_path: Path) -> None:
    out, alone = artifact().save(tmp_path / "out"), artifact().save(tmp_path / "alone.onnx")
    commands = [
        ["inspect", str(out), str(alone)],
        ["bench", str(out), str(alone), "--pairs", "2"],
        ["verify", str(out)],
        ["verify", str(alone)],
        ["convert", str(alone), str(tmp_path / "again.onnx")],
    ]
    for command in commands:
        done = CliRunner().invoke(app, command, prog_name="tersor", catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    name = next(tmp_path.glob("weights-*.bin")).name
    told = f"wrote {tmp_path / 'again.onnx'} (with its weights in {name}, next to it: keep them together)"
    assert done.stdout.splitlines()[-1] == told


@pytest.mark.usefixtures("split")
def test_an_input_that_is_kept_keeps_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given.onnx"
    onnx.save(model(), given, save_as_external_data=True, location="given.data", size_threshold=64)
    slower = Paired(1.0, 2.0, 0.5, 0.5, 0.5, 5)
    monkeypatch.setattr("tersor.driver.choosing.compare", lambda *_: slower)
    monkeypatch.setattr("tersor.tuning.search.duel", lambda *_: [slower])
    made = tersor.compile(given, recipe="fp32", sizes=[{"batch": 2}])
    assert made.report.kept == INPUT
    (tmp_path / "out").mkdir()
    saved = made.save(tmp_path / "out" / "out.onnx")
    np.testing.assert_array_equal(outputs(saved), outputs(given))
    assert tersor.verify(made.save(tmp_path / "folder"), model=given).notes == []


def test_a_folder_keeps_what_is_not_ours(tmp_path: Path) -> None:
    out = artifact(1).save(tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    kept = {"manifest.json", "README.md", "notes.txt"}
    old = set(listing(out)) - kept
    artifact(2).save(out)
    new = set(listing(out))
    assert not old & new and kept < new and len(new) == 5


# -- what cannot be written ----------------------------------------------------------------------


def test_a_folder_that_is_no_artifact_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InvalidOption, match="exists and is not an artifact"):
        artifact().save(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def _folder(path: Path) -> None:
    path.mkdir()


def _file(path: Path) -> None:
    path.write_text("there before")


def _nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "name", "message"),
    [
        (_folder, "out.onnx", "cannot write {}: it is no regular file; choose another path"),
        (os.mkfifo, "out.onnx", "cannot write {}: it is no regular file; choose another path"),
        (_file, "out", "{} exists and is not an artifact: choose another path"),
        (_nothing, "nowhere/out.onnx", "cannot write {}: No such file or directory"),
        (_nothing, "nowhere/out", "cannot write {}: No such file or directory"),
        (_nothing, "n" * 300, "cannot write {}: File name too long"),
        (_nothing, "n" * 300 + ".onnx", "cannot write {}: File name too long"),
        (_nothing, "é" * 130 + ".onnx", "cannot write {}: File name too long"),
    ],
)
def test_where_it_cannot_be_written_nothing_changes(
    before: Callable[[Path], None], name: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    before(path)
    found = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InvalidOption) as caught:
        artifact().save(path)
    assert str(caught.value) == message.format(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == found


def test_a_null_byte_in_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=r"cannot write .*null byte"):
        artifact().save(tmp_path / "a\0b.onnx")


@pytest.mark.parametrize("name", ["out", "out.onnx"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / "real.onnx").write_text("there before")
    (tmp_path / "out.onnx").symlink_to("real.onnx")
    artifact().save(tmp_path / name)
    assert (tmp_path / "real.onnx").read_text() == "there before"
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        artifact().save(tmp_path / "out.onnx")
        artifact().save(tmp_path / "out")
    finally:
        os.umask(old)
    files = [tmp_path / "out.onnx", *(tmp_path / "out").iterdir()]
    assert {p.stat().st_mode & 0o777 for p in files} == {0o666 & ~mask}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tersor-test", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("name", ["out", "out.onnx"])
def test_a_full_disk_leaves_what_was_there(small_disk: Path, name: str) -> None:
    path = artifact().save(small_disk / name)
    before = {p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file()}
    large = artifact()
    large.files["tokenizer.json"] = bytes(1 << 20)
    large.model = bytes(1 << 20)
    with pytest.raises(InvalidOption) as caught:
        large.save(path)
    assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert {p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["out", "out.onnx"])
def test_a_read_only_disk_leaves_what_was_there(small_disk: Path, name: str) -> None:
    path = artifact(1).save(small_disk / name)
    before = {p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for target in (path, small_disk / f"new-{name}"):
        with pytest.raises(InvalidOption) as caught:
            artifact(2).save(target)
        assert str(caught.value) == f"cannot write {target}: Read-only file system"
    if path.is_dir():
        assert tersor.verify(path).notes == []  # which needs no writing
    assert {p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["out", "out.onnx"])
@pytest.mark.parametrize("room", [0, 1000, 20_000])
def test_a_file_that_may_not_grow_leaves_what_was_there(
    tmp_path: Path, name: str, room: int
) -> None:
    path, new = artifact(1).save(tmp_path / name), artifact(2)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        with pytest.raises(InvalidOption, match="File too large"):
            new.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# -- what is interrupted -------------------------------------------------------------------------


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = artifact(1).save(tmp_path / "out"), artifact(2)
    before = listing(path)

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    for target in (path, tmp_path / "new", tmp_path / "new.onnx"):
        with pytest.raises(KeyboardInterrupt):
            new.save(target)
    assert listing(path) == before and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    left = tmp_path / ".out.onnx.tersor-0123abcd.tmp"
    left.mkdir()
    (left / "model").write_bytes(b"half")
    (tmp_path / ".mine.tmp").mkdir()
    (tmp_path / ".x.tersor-0123abcd.tmp").write_text("a file, not ours")
    with storage.Staging(tmp_path, "other.onnx") as living:
        living.write("model", [b"half"])
        artifact().save(tmp_path / "out.onnx")
        assert (living.path / "model").read_bytes() == b"half"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".mine.tmp", ".x.tersor-0123abcd.tmp", "out.onnx",
    ]  # fmt: skip


def test_files_that_a_killed_process_put_there_unnamed_go_and_others_stay(tmp_path: Path) -> None:
    path = artifact(1).save(tmp_path / "out")
    made = hashlib.sha256(b"extra").hexdigest()[:16]
    ours = [f"extra-{made}.json", f"a-b-{made}", f"weights-{made}.bin"]
    theirs = [f"notes-{'0' * 16}.json", f"{made}.json", "extra.json"]
    for name in ours + theirs:
        (path / name).write_bytes(b"extra")
    (path / f"link-{made}").symlink_to(path / "extra.json")
    artifact(2).save(path)
    named = {"manifest.json", "README.md", *tersor.verify(path).files}
    assert {p.name for p in path.iterdir()} == {*named, *theirs, f"link-{made}"}


# At each line of its input, forks a process that saves A, B, A, B ... over one another without end, of
# 24 MB each, so that a save takes long enough to be killed at any place in it. That process says its
# number first, and a line after each save.
SAVER = """
import os, signal, sys
import numpy as np
from tersor.pipeline import registry
from tersor.artifact import Artifact
from tersor.frontends.onnx import split
from tersor.ir import DType, TensorType
from tersor.ops import TABLE

signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background jobs ignore it.
split.INLINE_BYTES = 1000
def made(seed):
    graph = TABLE.graph("kill")
    value = graph.add_input("x", TensorType(DType.F32, (2, 64)))
    for i in range(6):
        held = graph.constant(np.full((1024, 1024), seed + i, np.float32), "w")
        value = graph.emit("Add", [value, graph.emit("ReduceSum", [held], {"keepdims": 0})])
    graph.set_outputs([value], ["y"])
    backend = registry.backend("ort")
    choice = backend.Choice()
    about = {"seed": seed, "interface": {"inputs": [["x", "f32[2, 64]"]], "outputs": [["y", "f32[2, 64]"]]}}
    files = {"extra.json": str(seed).encode() * 1000}
    return Artifact(backend.build(graph, choice), "ort", choice.to_json(), about, files=files)
both = [made(1), made(100)]
for line in sys.stdin:
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        while True:
            for artifact in both:
                artifact.save(sys.argv[1])
                print("saved", flush=True)
    os.wait()
    print("ended", flush=True)
"""
SUMS = {seed: sum((seed + i) * (1 << 20) for i in range(6)) for seed in (1, 100)}


class Saver:
    """The program above; one process at a time saves."""

    def __init__(self, path: Path) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", SAVER, str(path)]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.saving = 0

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self) -> int:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        self.saving = int(self.line())
        return self.saving

    def saved(self, times: int) -> None:
        for _ in range(times):
            assert self.line() == "saved"

    def end(self, pid: int, number: int) -> None:
        os.kill(pid, number)
        self.saving = 0
        while (line := self.line()) != "ended":
            assert line == "saved"

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self.process.stdin is not None
        if kind is not None and self.saving:  # what failed is to be told, not that this waits
            os.kill(self.saving, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait(timeout=300)


def which(path: Path) -> int:
    """The seed of the artifact at ``path``, which must be whole and run."""
    tersor.verify(path)
    feed = {"x": np.zeros((2, 64), np.float32)}
    if path.is_file():
        (y,) = ort.InferenceSession(str(path)).run(None, feed)
    else:
        (y,) = tersor.load(path).run(feed).values()
    (seed,) = [s for s, total in SUMS.items() if y[0, 0] == np.float32(total)]
    return seed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out", "out.onnx"])
def test_kill_at_any_moment_leaves_the_old_or_the_new(name: str, tmp_path: Path) -> None:
    """50 moments in all, spread over the time of two saves, of which each replaces the other."""
    path = tmp_path / name
    rng = np.random.default_rng(5)
    seen = []
    with Saver(path) as saver:
        for _ in range(25):
            pid = saver.start()
            saver.saved(1)
            start = time.perf_counter()
            saver.saved(2)
            length = time.perf_counter() - start
            time.sleep(float(rng.uniform(0, length)))
            saver.end(pid, signal.SIGKILL)
            seen.append(which(path))
    assert set(seen) == {1, 100}
    artifact(3).save(path)  # which clears up
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]
    if path.is_dir():
        assert set(listing(path)) == {"manifest.json", "README.md", *tersor.verify(path).files}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out", "out.onnx"])
def test_two_at_once_leave_one_of_theirs_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with Saver(path) as one, Saver(path) as other:
        pids = one.start(), other.start()
        for _ in range(4):
            one.saved(2)  # a save that fails would end its process
            other.saved(2)
            which(path) if path.is_dir() else None
        one.end(pids[0], signal.SIGKILL)
        other.end(pids[1], signal.SIGKILL)
    which(path)


@pytest.mark.slow
def test_an_interrupted_process_leaves_no_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    with Saver(path) as saver:
        pid = saver.start()
        saver.saved(1)
        time.sleep(0.02)
        saver.end(pid, signal.SIGINT)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
    which(path)
