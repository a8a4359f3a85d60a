"""The file of what was measured: nothing gets lost, and what is no such file is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tersor.errors import InvalidOption
from tersor.files.storage import Staging
from tersor.tuning.database import Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tuning.json"


def test_a_later_run_goes_on_with_what_is_known(path: Path) -> None:
    first = Database(path)
    assert first.get("a") is None
    first.put("a", {"rows": 32})
    first.put("b", [1.5, "x", None])
    second = Database(path)
    assert second.get("a") == {"rows": 32} and second.get("b") == [1.5, "x", None]
    second.put("a", {"rows": 64})
    assert Database(path).get("a") == {"rows": 64}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_others_added_meanwhile_stays(path: Path) -> None:
    first, second = Database(path), Database(path)
    first.put("a", 1)
    second.put("b", 2)
    first.put("c", 3)
    assert json.loads(path.read_text()) == {"a": 1, "b": 2, "c": 3}


def test_what_another_measured_again_stays(path: Path) -> None:
    first = Database(path)
    first.put("a", 1)
    Database(path).put("a", 2)
    first.put("b", 3)
    assert json.loads(path.read_text()) == {"a": 2, "b": 3}


def test_a_result_that_comes_while_the_file_is_written_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Database(path), Database(path)
    other = threading.Thread(target=second.put, args=("b", 2))
    write = Staging.write

    def slow(staging: Staging, name: str, pieces: Any) -> Any:
        if not other.ident:  # By now the first has read the file, and has not replaced it.
            other.start()
            other.join(0.3)
            assert other.is_alive(), "the second did not wait"
        return write(staging, name, pieces)

    monkeypatch.setattr(Staging, "write", slow)
    first.put("a", 1)
    other.join(60)
    assert json.loads(path.read_text()) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"\xff\xfe{}", b"[" * 100_000],
    ids=["empty", "cut", "list", "number", "no text", "deep"],
)
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InvalidOption) as caught:
        Database(path)
    assert str(caught.value) == f"{path} is not a tuning database: remove it, or name another"
    assert path.read_bytes() == content


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="is not a tuning database"):
        Database(tmp_path)


def test_where_nothing_can_be_written_results_are_known_for_now(tmp_path: Path) -> None:
    # No permission would stop a superuser; that its folder is a file does.
    (tmp_path / "file").write_text("what was there before")
    path = tmp_path / "file" / "tuning.json"
    database = Database(path)
    database.put("a", 1)
    assert database.get("a") == 1
    assert database.problem.startswith(f"{path} cannot be written: ")
    assert (tmp_path / "file").read_text() == "what was there before"
    assert Database(path).get("a") is None
