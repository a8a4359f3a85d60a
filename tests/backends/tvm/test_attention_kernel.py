"""The attention kernel against the formula in doubles."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import Machine, call, compiled, from_bfloat16, on, to_bfloat16

from tersor.backends.tvm.kernels import attention
from tersor.backends.tvm.kernels.attention import Attention

LENGTHS = (1, 7, 16, 33, 128)
# float32: exponentials to 3e-7 and sums of up to 128. bfloat16: chances and exponentials have eight
# bits, and a mean of values of size one or so is off by as much.
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2}


def spec(
    dtype: str,
    packed: bool,
    mask: bool,
    causal: bool,
    d: int = 32,
    kv_heads: int = 4,
    v_d: int | None = None,
) -> Attention:
    return Attention(4, kv_heads, d, v_d or d, 1.5 * d**-0.5, dtype, packed, mask, causal)


def rows(given: Attention, batch: int, queries: int, keys: int) -> list[np.ndarray]:
    """q, k and v, as far apart as bfloat16 tells apart."""
    rng = np.random.default_rng(queries)
    shapes = [
        (queries, given.heads * given.d),
        (keys, given.kv_heads * given.d),
        (keys, given.kv_heads * given.v_d),
    ]
    made = [rng.standard_normal((batch, *s)).astype(np.float32) for s in shapes]
    return [from_bfloat16(to_bfloat16(a)) for a in made]


def masks(batch: int, keys: int) -> np.ndarray:
    """All keys, none, and every other one but the first."""
    mask = np.ones((batch, 1, 1, keys), bool)
    mask[1] = False
    mask[2, ..., ::2] = False
    return mask


def meaning(
    given: Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None
) -> np.ndarray:
    """In doubles; zeros where no key is left."""
    batch, queries, _ = q.shape
    split = [
        a.reshape(batch, a.shape[1], a.shape[2] // d, d).transpose(0, 2, 1, 3).astype(np.float64)
        for a, d in ((q, given.d), (k, given.d), (v, given.v_d))
    ]
    group = given.heads // given.kv_heads
    qh, kh, vh = split[0], split[1].repeat(group, 1), split[2].repeat(group, 1)
    scores = qh @ kh.transpose(0, 1, 3, 2) * given.scale
    left = np.broadcast_to(True if mask is None else mask, scores.shape)
    if given.causal:
        left = left & np.tri(queries, k.shape[1], dtype=bool)
    p = np.where(left, np.exp(scores - scores.max(-1, keepdims=True, initial=-1e30)), 0)
    total = p.sum(-1, keepdims=True)
    made = np.divide(p, total, out=np.zeros_like(p), where=total > 0) @ vh
    return made.transpose(0, 2, 1, 3).reshape(batch, queries, given.heads * given.v_d)


def run(
    given: Attention,
    machine: Machine,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
) -> np.ndarray:
    operands = [np.concatenate([q, k, v], -1)] if given.packed else [q, k, v]
    if given.dtype == "bfloat16":
        operands = [to_bfloat16(a) for a in operands]
    if mask is not None:
        operands.append(mask)
    out = np.full((*q.shape[:2], given.heads * given.v_d), 7, np.float32)
    (made,) = call(compiled(attention.kernel, given, machine), operands, [out])
    return made


def check(given: Attention, machine: Machine, queries: int, keys: int) -> None:
    q, k, v = rows(given, 3, queries, keys)
    mask = masks(3, keys) if given.mask else None
    got = run(given, machine, q, k, v, mask)
    np.testing.assert_allclose(
        got, meaning(given, q, k, v, mask), rtol=0, atol=TOLERANCE[given.dtype],
        err_msg=f"{queries} queries, {keys} keys",
    )  # fmt: skip
    if mask is not None:
        assert not got[1].any()


@on(["amx"])
@pytest.mark.parametrize(
    "given",
    [spec("bfloat16", True, True, False), spec("bfloat16", False, False, True, d=64, kv_heads=2)],
    ids=lambda g: g.name,
)
def test_bfloat16(machine: Machine, given: Attention) -> None:
    for length in LENGTHS:
        check(given, machine, length, length)


@on(["vnni", "widen8", "lane4"])
def test_float32(machine: Machine) -> None:
    given = spec("float32", True, True, False)
    for length in LENGTHS:
        check(given, machine, length, length)


@on(["vnni"])
def test_queries_see_no_later_key(machine: Machine) -> None:
    """With two queries' heads for each of the keys', of another size, and a mask besides."""
    given = spec("float32", False, True, True, d=64, kv_heads=2)
    for length in LENGTHS:
        check(given, machine, length, length)


@on(["amx", "vnni", "widen8", "lane4"])
@pytest.mark.parametrize(("d", "v_d"), [(28, 20), (7, 33), (44, 1)])
def test_heads_of_any_size(machine: Machine, d: int, v_d: int) -> None:
    """What pruning leaves: no whole vectors, and values of another size. Alone, where nothing lies behind
    the last row, and packed."""
    dtype = "bfloat16" if machine.isa.bfloat16 else "float32"
    for packed in (False, True):
        given = spec(dtype, packed, True, packed, d=d, kv_heads=2, v_d=v_d)
        for length in (1, 33):
            check(given, machine, length, length)


@on(["widen8"])
def test_keys_of_another_length(machine: Machine) -> None:
    given = spec("float32", False, False, False)
    for queries, keys in ((1, 40), (33, 1), (20, 64), (1, 0), (0, 5)):
        check(given, machine, queries, keys)


@on(["vnni"])
def test_odd_numbers_leave_others_alone(machine: Machine) -> None:
    """A query that is not a number is alone in it; scores of some thousands are no trouble; a batch
    entry knows nothing of another's keys."""
    given = spec("float32", True, True, False)
    q, k, v = rows(given, 3, 33, 33)
    mask = np.ones((3, 1, 1, 33), bool)
    before = run(given, machine, q, k, v, mask)
    q[0, 5] = np.nan
    q[1, 3] *= 1e4
    v[2, 7] = np.inf
    got = run(given, machine, q, k, v, mask)
    np.testing.assert_array_equal(np.delete(got[0], 5, 0), np.delete(before[0], 5, 0))
    # A score of 1e4 has an error of 1e-3, and e to it as much.
    np.testing.assert_allclose(got[1], meaning(given, q, k, v, mask)[1], atol=5e-3)
    assert not np.isfinite(got[2]).any()


def test_names_tell_kernels_apart() -> None:
    specs = [
        Attention(4, kv, 32, v_d, scale, dtype, packed, mask, causal)
        for kv in (2, 4) for v_d in (32, 16) for scale in (0.125, 0.12500001) for dtype in TOLERANCE
        for packed in (False, True) for mask in (False, True) for causal in (False, True)
    ]  # fmt: skip
    assert len({s.name for s in specs}) == len(specs) // 2  # Scales differ in their eighth digit.
    assert all(s.name.isidentifier() for s in specs)
