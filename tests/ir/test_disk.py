"""Graphs on disk: what is loaded is what was saved, and what is no graph is refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from same import assert_same
from strategies import Case, table_cases

from tersor.backends.ort.session import Evaluator
from tersor.errors import InvalidModel, InvalidOption
from tersor.frontends import load_model
from tersor.ir import (
    Affine,
    Dense,
    DType,
    Graph,
    Masked,
    Packed,
    TensorType,
    load,
    parse,
    print_graph,
    save,
    symbol,
)
from tersor.ops import TABLE
from tersor.pipeline.runner import weight_bytes

SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
F32 = TensorType(DType.F32, (2,))


def through(graph: Graph, path: Path) -> Graph:
    """The graph that is loaded once ``graph`` was saved; that nothing of it got lost."""
    again = load(save(graph, path), TABLE)
    assert print_graph(again) == print_graph(graph)
    assert_same(graph, again)
    assert (again.metadata, again.domains) == (graph.metadata, graph.domains)
    for one, other in zip(graph.all_graphs(), again.all_graphs(), strict=True):
        for name, value in one.constants.items():
            read = other.constants[name].encoding
            assert value.encoding is not None and read is not None
            assert read.describe() == value.encoding.describe()
            assert read.decode().tobytes() == value.encoding.decode().tobytes()
    return again


def constants(**arrays: object) -> Graph:
    graph = Graph()
    for name, array in arrays.items():
        graph.constant(array, name)  # type: ignore[arg-type]
    return graph


# -- round trip ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=SLOW_DRAWS)
@given(case=table_cases())
def test_any_graph_comes_back(case: Case, tmp_path: Path) -> None:
    through(case.graph, tmp_path / "case.graph")


@pytest.mark.parametrize("dtype", DType, ids=lambda d: d.value)
@pytest.mark.parametrize("shape", [(), (3,), (4, 5), (0, 4), (2, 3, 4)], ids=str)
def test_constants_of_every_dtype_come_back(
    dtype: DType, shape: tuple[int, ...], tmp_path: Path
) -> None:
    numbers = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape)
    array = (
        numbers.astype(str).astype(object) if dtype is DType.STRING else numbers.astype(dtype.numpy)
    )
    if (
        dtype.is_float
        and dtype is not DType.F8E8M0
        and dtype is not DType.F4E2M1
        and array.size > 1
    ):
        array.reshape(-1)[0] = np.nan
    through(constants(c=array), tmp_path / "c.graph")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(20, dtype=">f4"),
        np.arange(60, dtype=np.float64).reshape(3, 4, 5).transpose(1, 2, 0),
        np.arange(60).reshape(3, 4, 5)[:, ::2],
        np.arange(20, dtype=np.float32)[::-1],
        np.broadcast_to(np.arange(4, dtype=np.int32), (5, 4)),
        np.array(["ü\udc80\"\n", "", "x" * 300] * 4, object).reshape(3, 4),
        np.array(["fixed", "width"]),
    ],
    ids=["big-endian", "transposed", "with gaps", "reversed", "broadcast", "strings", "numpy strings"],
)  # fmt: skip
def test_arrays_come_back_however_they_lie(array: np.ndarray, tmp_path: Path) -> None:
    graph = constants(a=array, b=array.copy(), other=np.ones(9))
    again = load(save(graph, tmp_path / "a.graph"))
    assert print_graph(again) == print_graph(graph)
    for name in ("a", "b"):
        np.testing.assert_array_equal(again.constants[name].numpy(), array)


def test_odd_names_and_all_that_the_text_leaves_out_come_back(tmp_path: Path) -> None:
    names = [
        "",
        'a "quoted" name',
        "../up/\\down",
        "zwölf\n\udc80 🙂",
        "// tersor graph",
        "#0123456789abcdef",
    ]
    graph = Graph(names[1])
    x = graph.add_input(names[0], TensorType(DType.F32, (symbol("rows"), symbol("rows") * 2 + 1)))
    w = graph.constant(np.arange(40, dtype=np.float32), names[2])
    node = graph.emit_node(
        "custom.Op", [x, None, w], {"t": Dense(np.arange(30)), "s": names[3]},
        names=[names[4]], types=[F32], scope=names[3], node_name=names[5],
    )  # fmt: skip
    graph.set_outputs([node.output, x], [names[5], names[3]])
    graph.metadata, graph.domains = {names[3]: "\n", "": "x"}, {"custom": 7}
    path = tmp_path / "a b 'ü'.graph"
    again = load(save(graph, path))
    assert_same(graph, again)
    assert print_graph(again) == print_graph(graph)
    assert (again.metadata, again.domains) == (graph.metadata, graph.domains)


LOOP = """graph main(%x: f32[n, 4], %turns: i64[], %go: bool[]) -> (y = %y) {
  @w: f32[4, 4] = dense normal(3)
  %y: f32[n, 4] = Loop(%turns, %go, %x) {body = graph body(%i: i64[], %c: bool[], %s: f32[n, 4]) -> (c = %c2, s = %s2) {
    @inner: f32[4, 4] = dense normal(4)
    %c2: bool[] = Identity(%c)
    %p: f32[n, 4] = MatMul(%s, @w)
    %s2: f32[n, 4] = MatMul(%p, @inner)
  }}
}
"""


def test_loops_with_what_they_capture_run_equal(tmp_path: Path) -> None:
    graph = parse(LOOP, TABLE)
    again = through(graph, tmp_path / "loop.graph")
    feed = {"x": np.ones((2, 4), np.float32), "turns": np.array(3), "go": np.array(True)}
    run = Evaluator()
    np.testing.assert_array_equal(run(again, feed)["y"], run(graph, feed)["y"])


# -- the files -------------------------------------------------------------------------------------


def test_weights_are_mapped_aligned_and_stored_once(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((100, 30)).astype(np.float32)
    codes = Affine(
        (np.arange(3000) % 15 - 7).astype(np.int8).reshape(100, 30),
        np.float32(0.5),
        np.int8(0),
        bits=4,
    )
    pruned = Masked.of(table > 0, codes)
    graph = constants(table=table, head=table.T, codes=codes, pruned=pruned, again=table.copy())
    path = save(graph, tmp_path / "tied.graph")
    loaded = load(path)
    weights = next(tmp_path.glob("weights-*.bin"))
    # The table, twice the codes (the pruned ones are others), a mask, and scales.
    assert weights.stat().st_size <= 12000 + 2 * 1500 + 375 + 64 * 8
    arrays = [
        a for v in loaded.constants.values() for a in v.encoding.arrays().values() if a.size > 9
    ]  # type: ignore[union-attr]
    assert len(arrays) == 6
    assert not any(a.flags.owndata or a.flags.writeable for a in arrays)
    assert {a.__array_interface__["data"][0] % 64 for a in arrays} == {0}
    places = {n: v.encoding.place for n, v in loaded.constants.items()}  # type: ignore[union-attr]
    assert places["table"] == places["head"] == places["again"] != places["codes"]
    assert weight_bytes(loaded) == weight_bytes(
        constants(table=table, head=table.T, codes=codes, pruned=pruned)
    )
    assert isinstance(loaded.constants["pruned"].encoding, Masked)


def test_equal_graphs_give_equal_bytes_and_saving_again_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    one, two = tmp_path / "one.graph", tmp_path / "two.graph"
    save(constants(w=np.arange(100)), one)
    save(constants(w=np.arange(100)), two)
    assert one.read_bytes() == two.read_bytes() and len(list(tmp_path.iterdir())) == 3
    save(constants(w=np.arange(200)), one)  # Its old weights are the other's.
    assert load(two).constants["w"].numpy().size == 100
    save(load(one), two)  # Over the file that it is mapped from, in effect.
    assert len(list(tmp_path.iterdir())) == 3
    save(load(two), two)
    save(constants(w=np.arange(3)), one)
    save(constants(w=np.arange(3)), two)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.graph", "two.graph"]


def test_saving_copies_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, size = 1 << 20, 1 << 24
    monkeypatch.setattr("tersor.built.CHUNK", chunk)
    held = np.memmap(tmp_path / "held.bin", np.float32, "w+", shape=(1 << 10, size >> 12))
    graph = constants(w=held, turned=held.T, gaps=held[:, ::2])
    tracemalloc.start()
    save(graph, tmp_path / "large.graph")
    saving = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    load(tmp_path / "large.graph")
    loading = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Pieces of the views that have to be put in order: one, while the next is made.
    assert saving < 3 * chunk and loading < chunk, (saving, loading)


def test_models_are_taken_from_graphs_on_disk(tmp_path: Path) -> None:
    graph = parse(LOOP, TABLE)
    imported = load_model(save(graph, tmp_path / "m.graph"), input_names=["a", "b", "c"])
    assert [v.name for v in imported.graph.inputs] == ["a", "b", "c"]
    with pytest.raises(InvalidModel, match="No such file"):
        load_model(tmp_path / "none.graph")


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a graph that tersor saved"),
        (b"\x08\x0a\x12 onnx", "not a graph that tersor saved"),
        (b"// tersor graph 2 00\n", "in format 2, this version of tersor reads 1"),
        (b"// tersor graph \xff\xff\n", "in format"),
        (b"// tersor graph 1 00\ngraph main() -> () {}", "damaged, changed or cut short"),
    ],
)
def test_other_files_are_refused(data: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.graph"
    path.write_bytes(data)
    with pytest.raises(InvalidModel, match=why) as refused:
        load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(constants(w=np.arange(100), v=np.ones(50, np.float32)), tmp_path / "w.graph")


def test_every_cut_and_flipped_bit_is_noticed(saved: Path) -> None:
    weights = next(saved.parent.glob("weights-*.bin"))
    for path in (saved, weights):
        whole = path.read_bytes()
        for at in range(0, len(whole), 37):
            path.write_bytes(whole[:at])
            with pytest.raises(InvalidModel):
                load(saved)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(InvalidModel):
                load(saved)
        path.write_bytes(whole)
    assert len(load(saved).constants) == 2


def test_weights_that_are_not_there_or_are_links_are_refused(saved: Path) -> None:
    weights = next(saved.parent.glob("weights-*.bin"))
    moved = weights.rename(saved.parent / "elsewhere")
    with pytest.raises(InvalidModel, match=r"w\.graph: No such file or directory \(.*weights-"):
        load(saved)
    weights.symlink_to(moved)
    with pytest.raises(InvalidModel, match="a symbolic link"):
        load(saved)
    os.mkfifo(saved.parent / "pipe.graph")
    with pytest.raises(InvalidModel, match="not a regular file"):
        load(saved.parent / "pipe.graph")
    with pytest.raises(InvalidModel, match="not a regular file"):
        load(saved.parent)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda told: told.update(weights="../w.bin"), r"'\.\./w\.bin' is not the name of a weights file"),
        (lambda told: told.update(weights=7), "not a graph that can be"),
        (lambda told: told.update(weights=None), "not a graph that can be"),
        (lambda told: told.update(offsets=[10**9] * 2), "not a graph that can be"),
        (lambda told: told.update(offsets=[-8] * 2), "not a graph that can be"),
        (lambda told: told.update(constants={}), "no weight with digest"),
        (lambda told: told.update(constants=[1]), "not a graph that can be"),
        (lambda told: told.pop("metadata"), "not a graph that can be"),
        (lambda told: [e.update(form="none") for e in told["constants"].values()], "not a graph that can be"),
        (lambda told: [e.update(more=1) for e in told["constants"].values()], "not a graph that can be"),
        (lambda told: [e["array"].update(type="f32[n]") for e in told["constants"].values()], "not a graph that can"),
        (lambda told: [e["array"].update(type="f32[1]") for e in told["constants"].values()], "is of type f32"),
        (lambda told: [e["array"].update(type="f32[99999999999]") for e in told["constants"].values()], "not a graph"),
    ],
)  # fmt: skip
def test_files_that_somebody_wrote_are_refused_in_one_line(
    saved: Path, change: object, why: str
) -> None:
    _, line, text = saved.read_text().split("\n", 2)
    told = json.loads(line[3:])
    change(told)  # type: ignore[operator]
    body = f"// {json.dumps(told)}\n{text}".encode()
    saved.write_bytes(
        b"// tersor graph 1 %s\n%s" % (hashlib.sha256(body).hexdigest().encode(), body)
    )
    with pytest.raises(InvalidModel, match=why) as refused:
        load(saved)
    assert "\n" not in str(refused.value)


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    graph = constants(w=np.arange(100))
    for path, why in [
        (tmp_path / "x.onnx", r"the file of a graph ends in \.graph"),
        (tmp_path / "none" / "x.graph", "No such file"),
        (tmp_path / "x\0.graph", "null byte"),
    ]:
        with pytest.raises(InvalidOption, match=why):
            save(graph, path)
    (tmp_path / "folder.graph").mkdir()
    with pytest.raises(InvalidOption, match="no regular file"):
        save(graph, tmp_path / "folder.graph")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.graph"]


def test_what_was_there_stays_where_writing_fails(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in saved.parent.iterdir()}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tersor.files.storage.os.fsync", full)
    with pytest.raises(InvalidOption, match=r"cannot write .*w\.graph: No space left on device"):
        save(constants(w=np.arange(500)), saved)
    assert {p.name: p.read_bytes() for p in saved.parent.iterdir()} == before


def test_halves_of_a_byte_stay_halves(tmp_path: Path) -> None:
    packed = Packed.of((np.arange(1000) % 16 - 8).astype(ml_dtypes.int4).reshape(25, 40))
    path = save(constants(w=packed.permute((1, 0))), tmp_path / "p.graph")
    assert next(tmp_path.glob("weights-*")).stat().st_size == 500
    read = load(path).constants["w"].encoding
    assert isinstance(read, Packed) and read.order == (1, 0)
