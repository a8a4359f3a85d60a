"""Sizes that only a run tells: operands that do not broadcast are refused, as ONNX Runtime refuses them, and others
give the same numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="the tvm backend is not installed")

from contract import Run, compiled_in_tvm, run_in_onnx

from tersor.backends.tvm import build, open_session, ops
from tersor.backends.tvm.module import lower
from tersor.backends.tvm.sizes import name_sizes
from tersor.errors import InvalidOption
from tersor.ir import Graph, parse
from tersor.ops import TABLE

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """A graph, and the sizes of its symbols (by their order) that do and that do not fit."""

    text: str
    names: str
    fitting: Sequence[tuple[int, ...]]
    others: Sequence[tuple[int, ...]]

    def graph(self) -> Graph:
        return parse(self.text, TABLE)

    def feed(self, sizes: tuple[int, ...]) -> Feed:
        """Numbers for the inputs; an integer input of known dims has the sizes of the symbols in its name."""
        rng = np.random.default_rng(sum(sizes))
        own, made = dict(zip(self.names.split(), sizes, strict=True)), Feed()
        for value in self.graph().inputs:
            shape, dtype = value.tensor.at(own), value.tensor.dtype
            if dtype.is_integer and value.tensor.is_static:
                made[value.name] = np.array([own[name] for name in value.name.split("_")])
            elif dtype.is_float:
                made[value.name] = rng.standard_normal(shape).astype(np.float32)
            else:
                made[value.name] = rng.integers(0, 2, shape).astype(dtype.numpy)
        return made


CASES = {
    # A size that is computed in the run, read again and again.
    "slice": Sizes("""graph g(%x: f32[n], %v: i64[1]) -> (y = %y) {
  @zero: i64[1] = dense [0]
  %s: f32[?] = Slice(%x, %zero, %v)
  %a: f32[?] = Add(%x, %s)
  %b: f32[?] = Mul(%a, %s)
  %y: f32[?] = Add(%b, %x)
}""", "n v", [(7, 7), (7, 1), (1, 0), (0, 0), (1, 1)], [(7, 5), (7, 0), (4, 3)]),
    "names": Sizes("""graph g(%x: f32[a, 3], %y: f32[b, c], %w: f32[d, 1, e]) -> (z = %z) {
  %z: f32[?, ?, ?] = Sum(%x, %y, %w)
}""", "a b c d e", [(2, 2, 3, 4, 1), (1, 5, 1, 2, 3), (4, 1, 3, 0, 3)],
        [(2, 3, 3, 1, 1), (2, 2, 2, 1, 1), (2, 2, 1, 1, 4), (3, 0, 1, 1, 1)]),
    "number": Sizes("""graph g(%x: f32[n]) -> (y = %y) {
  @c: f32[3] = dense [1, 2, 3]
  %y: f32[3] = Max(%x, @c)
}""", "n", [(3,), (1,)], [(0,), (2,), (5,)]),
    "where": Sizes("""graph g(%c: bool[a, 1], %x: f32[b], %y: f32[c, d]) -> (z = %z) {
  %z: f32[?, ?] = Where(%c, %x, %y)
}""", "a b c d", [(2, 3, 1, 3), (1, 3, 4, 1), (2, 1, 2, 1)], [(2, 3, 3, 3), (2, 3, 2, 2)]),
    "group norm": Sizes("""graph g(%x: f32[2, c, 3], %s: f32[d], %b: f32[e]) -> (y = %y) {
  %y: f32[2, c, 3] = GroupNormalization(%x, %s, %b) {num_groups = 2}
}""", "c d e", [(4, 4, 4), (2, 2, 2)], [(4, 2, 4), (4, 4, 3), (1, 1, 1), (3, 3, 3)]),
    # The file's word on a size.
    "declared": Sizes("""graph g(%x: f32[a], %y: f32[b]) -> (z = %z) {
  %s: f32[a] = Add(%x, %y)
  %z: f32[a] = Relu(%s)
}""", "a b", [(4, 4), (4, 1), (0, 1)], [(4, 3)]),
    "matmul": Sizes("""graph g(%x: f32[a, 2, n], %w: f32[b, m, 3]) -> (y = %y) {
  %y: f32[?, 2, 3] = MatMul(%x, %w)
}""", "a n b m", [(1, 2, 3, 2), (3, 2, 1, 2), (2, 2, 2, 2), (0, 2, 1, 2), (1, 0, 1, 0)],
        [(2, 2, 3, 2), (1, 1, 1, 2), (1, 2, 1, 1), (1, 3, 1, 2)]),
    "weight": Sizes("""graph g(%x: f32[a, n]) -> (y = %y) {
  @w: f32[3, 2] = dense [1, 2, 3, 4, 5, 6]
  %y: f32[a, 2] = MatMul(%x, @w)
}""", "a n", [(1, 3), (2, 3), (0, 3)], [(2, 1), (2, 2), (2, 4)]),
    "gemm": Sizes("""graph g(%x: f32[a, n], %w: f32[n, b], %c: f32[d, e]) -> (y = %y) {
  %y: f32[a, b] = Gemm(%x, %w, %c)
}""", "a n b d e", [(2, 3, 4, 1, 4), (2, 3, 4, 2, 1)], [(2, 3, 4, 3, 4), (2, 3, 4, 1, 3)]),
    "einsum": Sizes("""graph g(%x: f32[a, n], %w: f32[m, b], %u: f32[c]) -> (y = %y) {
  %y: f32[?] = Einsum(%x, %w, %u) {equation = "ij,jk,k->i"}
}""", "a n m b c", [(2, 3, 3, 2, 2), (2, 1, 3, 2, 2), (2, 3, 1, 2, 2), (2, 3, 3, 2, 1)],
        [(2, 3, 2, 2, 2), (2, 3, 3, 2, 3)]),
    "diagonal": Sizes("""graph g(%x: f32[a, b]) -> (y = %y) {
  %y: f32[?] = Einsum(%x) {equation = "ii->i"}
}""", "a b", [(2, 2), (1, 1)], [(1, 3), (3, 1), (2, 3)]),
    "expand": Sizes("""graph g(%x: f32[a, 1, c], %p_q: i64[2]) -> (y = %y) {
  %y: f32[a, ?, ?] = Expand(%x, %p_q)
}""", "a c p q", [(2, 3, 4, 1), (2, 3, 4, 3), (2, 1, 4, 5), (2, 1, 0, 5)], [(2, 3, 4, 2), (2, 3, 1, 0)]),
    "expand like": Sizes("""graph g(%x: f32[a, 1], %z: f32[b, c]) -> (y = %y) {
  %t: i64[2] = Shape(%z) {start = 0}
  %y: f32[?, c] = Expand(%x, %t)
}""", "a b c", [(2, 2, 4), (1, 2, 4), (2, 1, 4)], [(2, 3, 4)]),
    "norm": Sizes("""graph g(%x: f32[a, n], %w: f32[m]) -> (y = %y) {
  %y: f32[a, n] = LayerNormalization(%x, %w) {axis = -1}
}""", "a n m", [(2, 3, 3), (2, 3, 1)], [(2, 3, 2), (2, 2, 3), (2, 1, 3)]),
    "concat": Sizes("""graph g(%x: f32[a, n], %y: f32[b, n]) -> (z = %z) {
  %z: f32[?, 2*n] = Concat(%x, %y) {axis = 1}
}""", "a n b", [(2, 3, 2)], [(2, 3, 1), (1, 3, 2), (2, 3, 3)]),
    # In the turns of a Loop and in a branch; what is carried keeps its sizes.
    "loop": Sizes("""graph g(%x: f32[n], %z: f32[m], %v: i64[1]) -> (y = %y) {
  @yes: bool[] = dense [true]
  @three: i64[] = dense [3]
  %y: f32[?] = Loop(@three, @yes, %x) {body = graph body(%i: i64[], %go: bool[], %h: f32[?]) -> (on = %go, next = %next) {
    %next: f32[?] = Mul(%h, %z)
  }}
}""", "n m v", [(3, 3, 1), (3, 1, 1), (1, 3, 1)], [(3, 2, 1)]),
    "if": Sizes("""graph g(%x: f32[n], %z: f32[m], %v: i64[1]) -> (y = %y) {
  %first: i64[] = Squeeze(%v)
  %c: bool[] = Cast(%first) {to = 9}
  %y: f32[?] = If(%c) {else_branch = graph other() -> (o = %x) {
  }, then_branch = graph taken() -> (t = %t) {
    %t: f32[?] = Sub(%x, %z)
  }}
}""", "n m v", [(3, 3, 1), (3, 1, 1), (1, 3, 1), (3, 2, 0)], [(3, 2, 1)]),
}  # fmt: skip


# Attention by its kernel and without; an embedding whose ids have names of their own.
MASKED = Sizes("""graph g(%q: f32[b, n, 32], %k: f32[b, m, 32], %v: f32[b, m, 32], %mask: bool[c, h, p, m]) -> (y = %y) {
  %y: f32[b, n, 32] = Attention(%q, %k, %v, %mask) {q_num_heads = 2, kv_num_heads = 2, is_causal = 0, softcap = 0.0}
}""", "b n m c h p", [(3, 2, 4, 3, 2, 2), (3, 2, 4, 1, 1, 2), (1, 2, 4, 1, 2, 2)],
    [(3, 2, 4, 2, 2, 2), (3, 2, 4, 3, 3, 2), (3, 2, 4, 3, 2, 3), (1, 2, 4, 3, 2, 2)])  # fmt: skip
EMBEDDED = Sizes("""graph g(%x: i64[a, b], %z: i64[c, d]) -> (y = %y) {
  @gamma: f32[4] = dense [1, 2, 3, 4]
  @table: f32[5, 4] = dense [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 3, 5, 7, 9, 2, 4, 6, 8, 0]
  %y: f32[?, ?, 4] = tersor.EmbeddingLayerNormalization(@gamma, @gamma, %x, @table, %z, @table) {epsilon = 1e-05}
}""", "a b c d", [(2, 3, 2, 3), (2, 1, 1, 3), (1, 3, 2, 1)], [(2, 3, 3, 3), (2, 3, 1, 2)])  # fmt: skip
CASES |= {"attention": MASKED, "embedding": EMBEDDED}
KERNELS = {"attention by a kernel": MASKED}
ALL = CASES | KERNELS


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    named = {name: name_sizes(case.graph()) for name, case in ALL.items()}
    made = [
        *compiled_in_tvm(*(named[name] for name in CASES)),
        *compiled_in_tvm(*(named[name] for name in KERNELS), kernels=True),
    ]
    return dict(zip(ALL, made, strict=True))


@pytest.mark.parametrize(
    ("name", "sizes"), [(name, sizes) for name, case in ALL.items() for sizes in case.fitting]
)
def test_sizes_that_broadcast_give_the_same(
    name: str, sizes: tuple[int, ...], runs: dict[str, Run]
) -> None:
    feed = ALL[name].feed(sizes)
    want: list[Any] = run_in_onnx(ALL[name].graph(), feed, reference=False)
    for mine, theirs in zip(runs[name](feed), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5, strict=True)


@pytest.mark.parametrize(
    ("name", "sizes"), [(name, sizes) for name, case in ALL.items() for sizes in case.others]
)
def test_others_are_refused(name: str, sizes: tuple[int, ...], runs: dict[str, Run]) -> None:
    feed = ALL[name].feed(sizes)
    with pytest.raises(Exception):  # noqa: B017  Of many kinds; whatever it is, it refuses.
        run_in_onnx(ALL[name].graph(), feed, reference=False)
    with pytest.raises(
        ValueError, match=r"^[\w.]+ %\w+.*: (sizes \d+ and \d+|a size is \d+, and \d+)"
    ):
        runs[name](feed)


def checks(text: str) -> int:
    module, _ = lower(name_sizes(parse(text, TABLE)), ops.RULES)
    return len(re.findall(r'"tersor\.check_\w+"', str(module)))


def test_a_pair_is_checked_once() -> None:
    assert checks(CASES["slice"].text) == 1


def test_equal_names_need_no_check() -> None:
    assert (
        checks("""graph g(%x: f32[a, b, 3], %y: f32[b, 1], %w: f32[3, b]) -> (z = %z) {
  @c: f32[3] = dense [1, 2, 3]
  %s: f32[a, b, 3] = Add(%x, %y)
  %t: f32[a, b, 3] = Mul(%s, @c)
  %m: f32[a, b, b] = MatMul(%t, %w)
  %z: f32[a, b, b] = Softmax(%m) {axis = -1}
}""")
        == 0
    )


def test_the_error_of_a_session_names_the_node_and_both_sizes() -> None:
    case = CASES["slice"]
    session = open_session(build(case.graph()))
    assert session.run(case.feed((7, 7))).keys() == {"y"}
    with pytest.raises(InvalidOption, match="Add %a: sizes 7 and 5 do not broadcast"):
        session.run(case.feed((7, 5)))
