"""What is moved by numbers that only the run tells, or by sizes: past no tensor's end, whatever they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract import run_in_tvm

from tersor.errors import Unsupported
from tersor.ir import parse
from tersor.ops import TABLE

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from tersor.backends.tvm.module import lower
from tersor.backends.tvm.ops import RULES


def grid(*shape: int) -> np.ndarray:
    """0, 1, 2 …, so that each element says where it is from."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def ints(*items: Any) -> np.ndarray:
    return np.array(items, np.int64)


def run(text: str, **inputs: np.ndarray) -> np.ndarray:
    """The one output of a graph in IR text."""
    (made,) = run_in_tvm(parse(text, TABLE), inputs)
    return made


def expect(want: np.ndarray, text: str, **inputs: np.ndarray) -> None:
    made = run(text, **inputs)
    assert made.dtype == want.dtype
    np.testing.assert_array_equal(made, want)


# -- sizes as numbers ------------------------------------------------------------------------------

POSITIONS = """graph main(%x: f32[batch, seq], %table: f32[6, 2]) -> (y = %y) {
  @zero: i64[1] = dense [0]
  %seq: i64[1] = Shape(%x) {start = 1, end = 2}
  %y: f32[seq, 2] = Slice(%table, @zero, %seq, @zero)
}"""


def test_a_slice_ends_at_a_symbolic_size() -> None:
    expect(grid(6, 2)[:4], POSITIONS, x=grid(1, 4), table=grid(6, 2))


def test_a_slice_reads_nothing_behind_a_table_that_is_too_short() -> None:
    made = run(POSITIONS, x=grid(1, 8), table=grid(6, 2))
    np.testing.assert_array_equal(made, grid(6, 2)[[0, 1, 2, 3, 4, 5, 5, 5]])


def test_a_slice_takes_the_last_of_a_symbolic_axis() -> None:
    text = """graph main(%x: f32[batch, seq]) -> (y = %y) {
      @start: i64[1] = dense [-2]
      @end: i64[1] = dense [9223372036854775807]
      @axis: i64[1] = dense [-1]
      %y: f32[batch, min(2, seq)] = Slice(%x, @start, @end, @axis)
    }"""
    for length in (5, 2, 1):
        expect(grid(2, length)[:, -2:], text, x=grid(2, length))


def test_a_border_of_a_symbolic_width() -> None:
    text = """graph main(%x: f32[batch, seq], %like: f32[more]) -> (y = %y) {
      @zeros: i64[3] = dense [0, 0, 0]
      %more: i64[1] = Shape(%like)
      %pads: i64[4] = Concat(@zeros, %more) {axis = 0}
      %y: f32[batch, seq + more] = Pad(%x, %pads)
    }"""
    x = grid(2, 3)
    expect(np.pad(x, ((0, 0), (0, 4))), text, x=x, like=grid(4))


def test_a_cache_grows() -> None:
    text = """graph main(%past: f32[batch, past, 2], %new: f32[batch, seq, 2]) -> (y = %y) {
      %y: f32[batch, past + seq, 2] = Concat(%past, %new) {axis = 1}
    }"""
    for past in (0, 3):
        parts = grid(2, past, 2), grid(2, 4, 2)
        expect(np.concatenate(parts, 1), text, past=parts[0], new=parts[1])


MISFITS = {
    "parts of other sizes": (
        """graph main(%a: f32[n, 2], %b: f32[m, 2]) -> (y = %y) {
          %y: f32[n, 4] = Concat(%a, %b) {axis = 1}
        }""",
        {"a": grid(3, 2), "b": grid(2, 2)},
    ),
    "sizes that are not the whole": (
        """graph main(%x: f32[n]) -> (y = %y) {
          @sizes: i64[2] = dense [2, 3]
          %first: f32[2], %y: f32[3] = Split(%x, @sizes)
        }""",
        {"x": grid(4)},
    ),
    "updates for fewer rows": (
        """graph main(%x: f32[4, 2], %i: i64[n, 1], %u: f32[m, 2]) -> (y = %y) {
          %y: f32[4, 2] = ScatterND(%x, %i, %u)
        }""",
        {"x": grid(4, 2), "i": ints([0], [1]), "u": grid(1, 2)},
    ),
    "channels that are not the weight's": (
        """graph main(%x: f32[1, c, 5], %w: f32[2, 3, 1]) -> (y = %y) {
          %y: f32[1, 2, 5] = Conv(%x, %w)
        }""",
        {"x": grid(1, 2, 5), "w": grid(2, 3, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_fails_in_the_run(name: str) -> None:
    text, inputs = MISFITS[name]
    with pytest.raises(
        (ValueError, RuntimeError), match=r"are not equal|match_cast error|expected to match"
    ):
        run(text, **inputs)


# -- numbers that only the run tells ---------------------------------------------------------------


def test_a_slice_by_inputs() -> None:
    text = """graph main(%x: f32[5, 6], %s: i64[2], %e: i64[2], %a: i64[2], %t: i64[2]) -> (y = %y) {
      %y: f32[2, 3] = Slice(%x, %s, %e, %a, %t)
    }"""
    x = grid(5, 6)
    expect(x[3:1:-1, 0:6:2], text, x=x, s=ints(0, 3), e=ints(99, 1), a=ints(-1, 0), t=ints(2, -1))
    expect(x[-2:, 1:4], text, x=x, s=ints(1, -2), e=ints(4, 9), a=ints(1, 0), t=ints(1, 1))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_a_border_by_inputs(mode: str) -> None:
    text = f"""graph main(%x: f32[3, 4], %p: i64[4]) -> (y = %y) {{
      %y: f32[6, 5] = Pad(%x, %p) {{mode = "{mode}"}}
    }}"""
    kind: Any = mode
    expect(np.pad(grid(3, 4)[:, 1:], ((1, 2), (0, 2)), mode=kind), text,
           x=grid(3, 4), p=ints(1, -1, 2, 2))  # fmt: skip


@pytest.mark.parametrize("axes", [[0], [-1], [1]])
def test_a_sum_along_axes_that_an_input_names(axes: list[int]) -> None:
    text = """graph main(%x: f32[3, 3, 3], %axes: i64[1]) -> (y = %y) {
      %y: f32[3, 3] = ReduceSum(%x, %axes) {keepdims = 0}
    }"""
    x = grid(3, 3, 3)
    expect(x.sum(axes[0]), text, x=x, axes=ints(*axes))


# -- indices ---------------------------------------------------------------------------------------


def test_an_index_outside_of_the_table_reads_its_nearest_row() -> None:
    text = """graph main(%x: f32[v, 2], %i: i64[n]) -> (y = %y) {
      %y: f32[n, 2] = Gather(%x, %i)
    }"""
    x, huge = grid(4, 2), 2**62
    expect(x[[3, 3, 0, 0, 3]], text, x=x, i=ints(4, huge, -5, -huge, -1))


def test_an_update_outside_of_the_tensor_is_left_out() -> None:
    text = """graph main(%x: f32[n], %i: i64[k, 1], %u: f32[k]) -> (y = %y) {
      %y: f32[n] = ScatterND(%x, %i, %u) {reduction = "add"}
    }"""
    made = np.array([0, 1, 2, 3 + 1], np.float32)
    expect(made, text, x=grid(4), i=ints([-1], [4], [-5]), u=np.ones(3, np.float32))


# -- refusals --------------------------------------------------------------------------------------

REFUSED = {
    "how many axes are cut is known at run time only": """graph main(%x: f32[4], %s: i64[k]) -> (y = %y) {
      %y: f32[2] = Slice(%x, %s, %s)
    }""",
    "the number of padded axes is known at run time only":
    """graph main(%x: f32[4], %p: i64[k]) -> (y = %y) {
      %y: f32[6] = Pad(%x, %p)
    }""",
    "a dim is known at run time only": """graph main(%x: f32[4], %s: i64[1]) -> (y = %y) {
      %y: f32[?] = Expand(%x, %s)
    }""",
    "the length of the index tuples is known at run time only":
    """graph main(%x: f32[4, 4], %i: i64[2, k]) -> (y = %y) {
      %y: f32[2, 4] = GatherND(%x, %i)
    }""",
    "antialias with a scale that is known at run time only":
    """graph main(%x: f32[1, 1, 4, 4], %s: f32[4]) -> (y = %y) {
      %y: f32[1, 1, 2, 2] = Resize(%x, _, %s) {mode = "linear", antialias = 1}
    }""",
    "align_corners with a scale that gives no whole size":
    """graph main(%x: f32[1, 5]) -> (y = %y) {
      @s: f32[2] = dense [1.0, 0.5]
      %y: f32[1, 2] = Resize(%x, _, @s) {mode = "linear", coordinate_transformation_mode = "align_corners"}
    }""",
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_lowered_says_why(reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        lower(parse(REFUSED[reason], TABLE), RULES)
