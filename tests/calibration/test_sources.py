"""What users give as calibration: the same batches each time, a batch in memory, one clear line if it is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tersor.calibration import sources
from tersor.calibration.sources import open_calibration
from tersor.errors import InvalidOption
from tersor.ir import Graph, parse
from tersor.ops import TABLE

TEXT = "graph main(%x: f32[batch, 3], %k: i64[]) -> (y = %x) {\n}"
ONE = "graph main(%x: f32[batch, 3]) -> (y = %x) {\n}"


@pytest.fixture
def graph() -> Graph:
    return parse(TEXT, TABLE)


def made(count: int = 4) -> list[dict[str, Any]]:
    draws = np.random.default_rng(0)
    return [
        {"x": draws.normal(size=(i + 1, 3)).astype(np.float32), "k": np.array(i)}
        for i in range(count)
    ]


class Reader:
    """As ONNX Runtime has them; it was read before."""

    def __init__(self) -> None:
        self.left: list[Any] = []

    def get_next(self) -> Any:
        return self.left.pop(0) if self.left else None

    def rewind(self) -> None:
        self.left = made()


class Shuffled:
    """Another order each time, as a DataLoader that shuffles."""

    def __init__(self) -> None:
        self.draws = np.random.default_rng(3)

    def __iter__(self) -> Iterator[Any]:
        batches = made()
        return iter([batches[i] for i in self.draws.permutation(len(batches))])


GIVEN = {
    "a list": made,
    "a tuple": lambda: tuple(made()),
    "a generator": lambda: (batch for batch in made()),
    "a reader": Reader,
    "torch tensors": lambda: [
        {"x": torch.tensor(b["x"], requires_grad=True), "k": torch.tensor(b["k"])} for b in made()
    ],
    "nested lists": lambda: [{"x": b["x"].tolist(), "k": int(b["k"])} for b in made()],
    "arrays in order": lambda: (tuple(b.values()) for b in made()),
}


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("kind", GIVEN)
def test_batches_are_the_same_each_time(
    kind: str, disk: bool, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "IN_MEMORY", 100 if disk else 1 << 20)
    found = open_calibration(GIVEN[kind](), graph)
    assert len(found) == 4
    for _ in range(2):
        for want, have in zip(made(), found, strict=True):
            assert have["x"].dtype == np.float32 and have["k"].dtype == np.int64
            np.testing.assert_array_equal(have["x"], want["x"])
            np.testing.assert_array_equal(have["k"], want["k"])


def test_what_shuffles_is_read_once(graph: Graph) -> None:
    found = open_calibration(Shuffled(), graph)
    orders = [[int(batch["k"]) for batch in found] for _ in range(3)]
    assert orders[0] == orders[1] == orders[2] and sorted(orders[0]) == [0, 1, 2, 3]
    first, second = iter(found), iter(found)  # Two at once do not disturb each other.
    next(first)
    assert [int(b["k"]) for b in second] == orders[0]
    assert [int(b["k"]) for b in first] == orders[0][1:]


def test_a_data_loader() -> None:
    rows = torch.arange(15, dtype=torch.float32).reshape(5, 3)
    for data in (rows, torch.utils.data.TensorDataset(rows)):
        found = open_calibration(torch.utils.data.DataLoader(data, batch_size=2), parse(ONE, TABLE))
        np.testing.assert_array_equal(np.concatenate([b["x"] for b in found]), rows.numpy())
        assert len(found) == 3


def test_element_types_that_numpy_does_not_know_and_strings_come_through() -> None:
    text = "graph main(%x: bf16[n], %s: string[n]) -> (y = %x) {\n}"
    batch = {"x": np.array([1, 2], ml_dtypes.bfloat16), "s": np.array(["a", "b"], object)}
    (found,) = open_calibration(iter([batch]), parse(text, TABLE))
    assert found["x"].dtype == ml_dtypes.bfloat16 and found["s"].tolist() == ["a", "b"]


def test_files(graph: Graph, tmp_path: Path) -> None:
    x = np.arange(33, dtype=np.float32).reshape(11, 3)
    np.savez(tmp_path / "c.npz", x=x, k=np.array(1))
    found = open_calibration(tmp_path / "c.npz", graph, batch=4)
    for _ in range(2):
        assert [len(b["x"]) for b in found] == [4, 4, 3]
    assert len(found) == 3
    assert len(open_calibration(str(tmp_path), graph)) == 1


NAN = np.array([[1, np.nan, 2]], np.float32)
REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": ([], "calibration has no batches"),
    "nothing comes": (iter([]), "calibration has no batches"),
    "one batch": ({"x": 1}, "calibration is one batch: give a list of batches"),
    "a number": (3, "calibration is of type int, not batches of arrays by name"),
    "no mapping": ([[1]], "calibration batch 0 is a list, not arrays by name"),
    "too few arrays": (iter([[NAN]]), "calibration batch 0 is 1 arrays without names; the model takes x, k"),
    "another name": ([{"x": NAN, "y": 1}], "calibration batch 0 has x, y; the model takes x, k"),
    "NaN": ([*made(1), {"x": NAN, "k": 1}], "calibration batch 1: 'x' contains NaN"),
    "no samples": (iter([*made(2), {"x": NAN[:0], "k": 1}]), "calibration batch 2 is empty: 'x' is of shape [0, 3]"),
    "another shape": ([{"x": NAN[:, :2], "k": 1}], "calibration batch 0: 'x' is f32[1, 2], the model takes f32[batch, 3]"),
    "another dtype": (iter([{"x": NAN.astype(np.float64), "k": 1}]), "calibration batch 0: 'x' is f64[1, 3], the model takes f32[batch, 3]"),
    "ragged": ([{"x": [[1, 2, 3], [4]], "k": 1}], "calibration batch 0: 'x' is not an array: "),
    "bfloat16 of torch": ([{"x": torch.zeros(1, 3, dtype=torch.bfloat16), "k": 1}], "calibration batch 0: 'x' is not an array: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_one_clear_line(case: str, graph: Graph) -> None:
    given, message = REFUSED[case]
    with pytest.raises(InvalidOption) as caught:
        open_calibration(given, graph)
    assert str(caught.value).startswith(message)


def test_infinity_is_taken(graph: Graph) -> None:
    """A mask of floats has it."""
    assert len(open_calibration([{"x": np.full((1, 3), -np.inf, np.float32), "k": 0}], graph)) == 1


def test_what_is_wrong_with_files_names_them(graph: Graph, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "c.npz", x=np.concatenate([np.zeros((9, 3), np.float32), NAN]), k=np.array(1)
    )
    with pytest.raises(InvalidOption, match=r"c.npz, batch 1: 'x' contains NaN"):
        open_calibration(tmp_path / "c.npz", graph)
    with pytest.raises(InvalidOption, match=r"none.npz: no such file"):
        open_calibration(tmp_path / "none.npz", graph)
    (tmp_path / "c.csv").write_text("1,2")
    with pytest.raises(InvalidOption, match=r"c.csv: not an .npz file, or damaged"):
        open_calibration(tmp_path / "c.csv", graph)
    with pytest.raises(InvalidOption, match="batch is 0; give 1 or more"):
        open_calibration(tmp_path / "c.npz", graph, batch=0)
    with pytest.raises(InvalidOption, match="batch is for calibration, and none is given"):
        open_calibration(None, graph, batch=2)
    with pytest.raises(InvalidOption, match="batch is for calibration files"):
        open_calibration(made(), graph, batch=2)


def test_no_space_is_one_clear_line(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tersor.calibration.sources.pickle.dump", full)
    with pytest.raises(InvalidOption, match=r"does not fit into the temporary folder .*: No space"):
        open_calibration(iter(made()), graph)
