"""Batches of calibration files: along which axis samples lie, how many run at once, what is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.calibration import samples
from tersor.calibration.arrays import Arrays
from tersor.calibration.samples import SampleFile, SampleFolder, Stack
from tersor.errors import InvalidOption
from tersor.ir import Graph, parse
from tersor.ops import TABLE

HERE = Path("c.npz")
AUDIO = """graph main(%x: f32[batch, samples], %state: f32[2, batch, 4], %sr: i64[], %k: f32[3]) -> (y = %x) {
}"""
UNNAMED = AUDIO.replace("2, batch", "2, state_dim1")
FIXED = """graph main(%x: f32[2, 5], %state: f32[1, 2, 4], %sr: i64[]) -> (y = %x) {
}"""


def batches(arrays: Arrays, where: Path, graph: Graph, batch: int | None = None) -> list[Arrays]:
    stack: Stack = samples.stacked(arrays, where, graph, batch)
    return [stack.cut(arrays, start) for start in stack.starts]


def stacked(count: int) -> dict[str, np.ndarray]:
    x = np.arange(count * 5, dtype=np.float32).reshape(count, 5)
    state = np.arange(2 * count * 4, dtype=np.float32).reshape(2, count, 4)
    return {"x": x, "state": state, "sr": np.array(16000), "k": np.ones(3, np.float32)}


@pytest.mark.parametrize("text", [AUDIO, UNNAMED])
@pytest.mark.parametrize(
    ("batch", "sizes"), [(None, [8, 3]), (4, [4, 4, 3]), (1, [1] * 11), (20, [11])]
)
def test_samples_lie_along_the_batch_wherever_that_is(
    text: str, batch: int | None, sizes: list[int]
) -> None:
    arrays = stacked(11)
    found = batches(arrays, HERE, parse(text, TABLE), batch)
    assert [len(b["x"]) for b in found] == sizes
    assert [b["state"].shape for b in found] == [(2, size, 4) for size in sizes]
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in found]), arrays["x"])
    np.testing.assert_array_equal(np.concatenate([b["state"] for b in found], 1), arrays["state"])
    for one in found:  # The same in every batch.
        assert one["sr"] == 16000 and one["k"].shape == (3,)


def test_a_state_of_one_is_the_same_in_every_batch_where_samples_are_many() -> None:
    arrays = {**stacked(5), "state": np.zeros((2, 1, 4), np.float32)}
    found = batches(arrays, HERE, parse(UNNAMED, TABLE), 1)
    assert [b["state"].shape for b in found] == [(2, 1, 4)] * 5


def test_a_model_of_a_fixed_batch_gets_just_that() -> None:
    graph, arrays = parse(FIXED, TABLE), {k: v for k, v in stacked(6).items() if k != "k"}
    arrays["state"] = arrays["state"][:1]
    assert [b["x"].shape for b in batches(arrays, HERE, graph)] == [(2, 5)] * 3
    shared = {**arrays, "state": arrays["state"][:, :2]}
    assert [b["state"].shape for b in batches(shared, HERE, graph)] == [(1, 2, 4)] * 3
    one = {**shared, "x": arrays["x"][:2]}
    assert len(batches(one, HERE, graph)) == 1
    with pytest.raises(InvalidOption, match=r"c.npz: 5 samples are no whole batches of 2, which"):
        batches({**shared, "x": stacked(5)["x"]}, HERE, graph)
    with pytest.raises(
        InvalidOption, match=r"c.npz: batches of 3 are no whole batches of 2, which"
    ):
        batches(arrays, HERE, graph, 3)


def test_samples_have_to_be_as_many_in_every_array() -> None:
    arrays = {**stacked(4), "state": np.zeros((2, 3, 4), np.float32)}
    with pytest.raises(
        InvalidOption, match=r"numbers of samples: x 4 \(axis 0\), state 3 \(axis 1\)$"
    ):
        batches(arrays, HERE, parse(AUDIO, TABLE))


def test_of_a_folder_each_file_is_a_batch(tmp_path: Path) -> None:
    graph = parse(AUDIO, TABLE)
    with pytest.raises(InvalidOption, match=r"the folder holds no \.npz files"):
        SampleFolder(tmp_path, graph)
    for name, count in (("b", 3), ("a", 9)):
        np.savez(tmp_path / f"{name}.npz", **stacked(count))
    (tmp_path / "notes.txt").write_text("")
    assert [len(b["x"]) for b in SampleFolder(tmp_path, graph)] == [9, 3]
    assert [len(b["x"]) for b in SampleFolder(tmp_path, graph, batch=4)] == [4, 4, 1, 3]
    np.savez(tmp_path / "c.npz", **{**stacked(2), "sr": np.array([1, 2])})
    with pytest.raises(
        InvalidOption, match=r"c.npz: array 'sr' is i64\[2\], the model takes i64\[\]"
    ):
        list(SampleFolder(tmp_path, graph))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_large_file_is_read_in_parts(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Fortran's order too, and along another axis than the first."""
    arrays = stacked(11)
    arrays["x"] = np.asfortranarray(arrays["x"])
    save(tmp_path / "c.npz", **arrays)
    graph = parse(AUDIO, TABLE)
    whole = list(SampleFile(tmp_path / "c.npz", graph))
    monkeypatch.setattr(samples, "IN_MEMORY", 0)
    parts = SampleFile(tmp_path / "c.npz", graph)
    for _ in range(2):
        for one, other in zip(whole, parts, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
                assert one[name].dtype == other[name].dtype
    damaged = bytearray((tmp_path / "c.npz").read_bytes())
    damaged[200] ^= 255
    (tmp_path / "d.npz").write_bytes(damaged)
    with pytest.raises(InvalidOption, match=r"d.npz: not an .npz file, or damaged"):
        SampleFile(tmp_path / "d.npz", graph)
    np.savez(tmp_path / "o.npz", x=np.array([print], object))
    with pytest.raises(
        InvalidOption, match=r"o.npz: contains pickled objects, which are not loaded"
    ):
        SampleFile(tmp_path / "o.npz", graph)
