"""Sizes that a file names without saying what they are: those that the operands give when they broadcast."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from contract import Run, compiled_in_tvm

from tersor.ir import parse
from tersor.ops import TABLE

TEXT = """graph g(%x: f32[a, 3], %y: f32[b, 3]) -> (z = %z) {
  %s: f32[c, 3] = Add(%x, %y)
  %z: f32[c, 3] = Relu(%s)
}"""


@pytest.fixture(scope="module")
def run() -> Run:
    graph = parse(TEXT, TABLE)
    (made,) = compiled_in_tvm(graph)
    return made


@pytest.mark.parametrize(("a", "b"), [(1, 4), (4, 1), (4, 4), (1, 1), (0, 1), (1, 0)])
def test_a_named_size_is_what_the_operands_broadcast_to(run: Run, a: int, b: int) -> None:
    x, y = (np.arange(3 * n, dtype=np.float32).reshape(n, 3) - 4 for n in (a, b))
    (z,) = run({"x": x, "y": y})
    np.testing.assert_array_equal(z, np.maximum(x + y, 0))
