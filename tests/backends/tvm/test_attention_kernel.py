"""The attention kernel against the formula in doubles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from kernels import Machine, build_all, call, compiled, from_bfloat16, on, to_bfloat16

from tersor.backends.tvm.kernels import attention
from tersor.backends.tvm.kernels.attention_spec import Attention

LENGTHS = (1, 7, 16, 33, 128)
# float32: exponentials to 3e-7 and sums of up to 128. bfloat16: chances and exponentials have eight
# bits, and a mean of values of size one or so is off by as much.
# int16: scores of size ten that are off by 1e-4 of that, values by 4 / 8,190.
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2, "int16": 4e-3}


def spec(
    dtype: str,
    packed: bool,
    mask: bool,
    causal: bool,
    d: int = 32,
    kv_heads: int = 4,
    v_d: int | None = None,
) -> Attention:
    masked = {"mask": "bool", "axes": "b11k"} if mask else {}
    return Attention(
        4, kv_heads, d, v_d or d, 1.5 * d**-0.5, dtype, "packed" if packed else "hidden", **masked,
        causal=causal,
    )  # fmt: skip


def rows(given: Attention, batch: int, queries: int, keys: int) -> list[np.ndarray]:
    """q, k and v, of numbers that bfloat16 represents."""
    rng = np.random.default_rng(queries)
    shapes = [
        (queries, given.heads * given.d),
        (keys, given.kv_heads * given.d),
        (keys, given.kv_heads * given.v_d),
    ]
    result = [rng.standard_normal((batch, *s)).astype(np.float32) for s in shapes]
    return [from_bfloat16(to_bfloat16(a)) for a in result]


def masks(batch: int, keys: int) -> np.ndarray:
    """All keys, none, and every other one but the first."""
    mask = np.ones((batch, 1, 1, keys), bool)
    mask[1] = False
    mask[2, ..., ::2] = False
    return mask


def meaning(
    given: Attention,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
    offsets: Sequence[int] = (0, 0, 0),
    lengths: Sequence[int] | None = None,
) -> np.ndarray:
    """Attention in double precision, of [batch, length, heads d]; zeros where all keys are masked. ``offsets``: of each batch entry's
    first query."""
    batch, queries, _ = q.shape
    split = [
        a.reshape(batch, a.shape[1], a.shape[2] // d, d).transpose(0, 2, 1, 3).astype(np.float64)
        for a, d in ((q, given.d), (k, given.d), (v, given.v_d))
    ]
    group = given.heads // given.kv_heads
    qh, kh, vh = split[0], split[1].repeat(group, 1), split[2].repeat(group, 1)
    scores = qh @ kh.transpose(0, 1, 3, 2) * given.scale
    if given.softcap:
        scores = given.softcap * np.tanh(scores / given.softcap)
    keys = k.shape[1]
    if mask is not None:
        # Keys beyond the end of a mask are left out.
        short = [(0, 0)] * (mask.ndim - 1) + [(0, max(0, keys - mask.shape[-1]))]
        out = False if mask.dtype == bool else -np.inf
        mask = np.pad(mask, short, constant_values=out)[..., :keys]
        scores = (
            np.where(mask, scores, -np.inf) if mask.dtype == bool else scores.astype("f") + mask
        )
    j = np.arange(keys)
    at = np.arange(queries)[:, None] + np.reshape(offsets[:batch], (-1, 1, 1, 1))
    left = np.ones((*at.shape[:-1], keys), bool)
    if given.causal:
        left &= j <= at
    if given.window[0] >= 0:
        left &= j >= at - given.window[0]
    if given.window[1] >= 0:
        left &= j <= at + given.window[1]
    if lengths is not None:
        left &= j < np.reshape(lengths[:batch], (-1, 1, 1, 1))
    scores = np.where(left, scores, -np.inf).astype(np.float64)
    highest = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), np.finfo(np.float32).min)
    p = np.exp(scores - highest)
    total = p.sum(-1, keepdims=True)
    result = np.divide(p, total, out=np.zeros_like(p), where=total > 0) @ vh
    return result.transpose(0, 2, 1, 3).reshape(batch, queries, given.heads * given.v_d)


def run(
    given: Attention,
    machine: Machine,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
) -> np.ndarray:
    operands = [np.concatenate([q, k, v], -1)] if given.layout == "packed" else [q, k, v]
    if given.dtype == "bfloat16":
        operands = [to_bfloat16(a) for a in operands]
    if mask is not None:
        operands.append(mask)
    out = np.full((*q.shape[:2], given.heads * given.v_d), 7, np.float32)
    (result,) = call(compiled(attention.kernel, given, machine), operands, [out])
    return result


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


@on(["widen8"])
@pytest.mark.parametrize(
    "given",
    [
        spec("int16", True, True, False),
        spec("int16", False, False, True, d=64, kv_heads=2, v_d=40),
        spec("int16", True, True, True, d=8, v_d=24),
    ],
    ids=lambda g: g.name,
)
def test_int16(machine: Machine, given: Attention) -> None:
    for length in (*LENGTHS, 300):
        check(given, machine, length, length)
    if given.layout != "packed":
        for queries, keys in ((5, 0), (20, 130), (9, 1)):
            check(replace(given, causal=False), machine, queries, keys)


@on(["widen8"])
def test_int16_sums_do_not_overflow(machine: Machine) -> None:
    """All numbers of a head are as large as any: queries and keys of opposite and of one sign, values of one."""
    given = spec("int16", False, False, False, d=32)
    for size in (1e-20, 1.0, 1e3):
        q, k = np.full((1, 8, 128), size, "f"), np.full((1, 300, 128), 0.01 / size, "f")
        k[:, 1::2] *= -1
        v = np.full((1, 300, 128), -size, "f")
        got = run(given, machine, q, k, v, None)
        np.testing.assert_allclose(got, np.full_like(got, -size), rtol=2e-4)
    zero = run(given, machine, q * 0, k * 0, v * 0, None)
    assert not zero.any()


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
def test_extreme_numbers_do_not_affect_others(machine: Machine) -> None:
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


# -- every form of the op ----------------------------------------------------------------------------

LOWEST = np.finfo(np.float32).min


def form(**features: Any) -> Attention:
    return Attention(4, 2, 12, 20, 0.4, **features)


FORMS = {
    "float mask of keys": form(mask="float32", axes="b11k"),
    "float mask, cap": form(mask="float32", axes="bhqk", softcap=2.0, layout="heads"),
    "boolean mask, causal, past": form(
        mask="bool", axes="11qk", causal=True, past=True, kv_layout="heads"
    ),
    "window of a padded cache": form(window=(5, 2), lengths=True),
    "float mask, causal, window": form(mask="float32", axes="qk", causal=True, window=(40, -1)),
}
SHAPES = ((1, 1), (1, 40), (3, 33), (7, 7), (16, 32), (33, 70), (70, 33), (2, 0))


@cache
def library(machine: Machine) -> Any:
    """All specializations, compiled together."""
    functions = {s.name: attention.kernel(s, machine.isa) for s in FORMS.values()}
    return build_all(functions, machine)


def by_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[batch, length, heads d] as [batch, heads, length, d]."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)


def attend(
    given: Attention,
    machine: Machine,
    operands: Sequence[np.ndarray],
    mask: np.ndarray | None = None,
    past: int = 0,
    lengths: Sequence[int] | None = None,
) -> np.ndarray:
    """[batch, length, heads d] for operands of that layout."""
    q, k, v = operands
    shape: tuple[int, ...] = (*q.shape[:2], given.heads * given.v_d)
    if given.layout == "heads":
        q, shape = by_heads(q, given.heads), (len(q), given.heads, q.shape[1], given.v_d)
    if given.kv_layout == "heads":
        k, v = by_heads(k, given.kv_heads), by_heads(v, given.kv_heads)
    passed: list[Any] = [q, k, v, *([] if mask is None else [mask])]
    passed += [] if lengths is None else [np.array(lengths[: len(q)])]
    sizes = [past] if given.past else []
    (got,) = call(library(machine)[given.name], passed, [np.full(shape, 7, np.float32)], sizes)
    result = got.transpose(0, 2, 1, 3) if given.layout == "heads" else got
    return result.reshape(*operands[0].shape[:2], -1)


def some_mask(given: Attention, sizes: dict[str, int]) -> np.ndarray | None:
    rng = np.random.default_rng(1)
    shape = [sizes[axis] for axis in given.axes]
    if not given.mask:
        return None
    if given.mask == "bool":
        return rng.random(shape) < 0.6
    result = rng.standard_normal(shape).astype(np.float32)
    result[rng.random(shape) < 0.2] = -np.inf
    return result


def check_form(given: Attention, machine: Machine, sizes: dict[str, int]) -> None:
    operands = rows(given, 3, sizes["queries"], sizes["keys"])
    mask = some_mask(given, sizes)
    lengths = [min(n, sizes["keys"]) for n in (0, 9, 64)] if given.lengths else None
    past = sizes["keys"] - sizes["queries"] if given.past else 0
    offsets = [past] * 3 if lengths is None else [n - sizes["queries"] for n in lengths]
    np.testing.assert_allclose(
        attend(given, machine, operands, mask, past, lengths),
        meaning(given, *operands, mask, offsets, lengths),
        rtol=0, atol=TOLERANCE["float32"], err_msg=str(sizes),
    )  # fmt: skip


@on(["vnni", "widen8"])
@pytest.mark.parametrize("name", FORMS)
def test_every_specialization(machine: Machine, name: str) -> None:
    """Some rows have no keys, in masks and in windows; a past of fewer keys than queries is none."""
    for queries, keys in SHAPES:
        sizes = {"queries": queries, "keys": keys, "b": 3, "h": 4, "q": queries, "k": keys}
        check_form(FORMS[name], machine, sizes | {"1": 1})


@on(["vnni", "widen8"])
def test_axes_of_a_mask_broadcast_at_run_time(machine: Machine) -> None:
    for one in ("b", "h", "q"):
        sizes = {"queries": 9, "keys": 35, "b": 3, "h": 4, "q": 9, "k": 35, one: 1}
        check_form(FORMS["float mask, cap"], machine, sizes)


@on(["vnni", "widen8"])
@pytest.mark.parametrize("name", ["float mask of keys", "boolean mask, causal, past"])
def test_keys_beyond_the_end_of_a_mask_are_masked(machine: Machine, name: str) -> None:
    for k in (1, 33):
        sizes = {"queries": 5, "keys": 40, "b": 3, "h": 4, "q": 5, "k": k, "1": 1}
        check_form(FORMS[name], machine, sizes)


@on(["vnni", "widen8"])
@pytest.mark.parametrize("queries", [1, 20])
def test_fully_masked_rows(machine: Machine, queries: int) -> None:
    """-inf leaves nothing, which gives zeros; the lowest float leaves the mean, as it does where it is added;
    -10000 leaves the scores as they were, but for the digits that the sum has no room for."""
    given = FORMS["float mask of keys"]
    q, k, v = rows(given, 3, queries, 37)
    mask = np.zeros((3, 1, 1, 37), np.float32)
    mask[0], mask[1], mask[2] = -np.inf, LOWEST, -1e4
    got = attend(given, machine, (q, k, v), mask)
    assert not got[0].any()
    mean = by_heads(v, 2)[1].repeat(2, 0).mean(1).reshape(-1)
    np.testing.assert_allclose(got[1], np.broadcast_to(mean, got[1].shape), atol=1e-6)
    # Scores near 10000 are 1e-3 apart.
    np.testing.assert_allclose(got[2], meaning(given, q, k, v, None)[2], atol=5e-3)


@on(["vnni", "widen8"])
@pytest.mark.parametrize("low", [-1e4, LOWEST, -np.inf])
def test_a_mask_of_low_numbers_equals_the_boolean_one_where_a_key_is_visible(
    machine: Machine, low: float
) -> None:
    """To the last bit: the probability of a masked key is zero."""
    given = FORMS["float mask of keys"]
    q, k, v = rows(given, 3, 20, 37)
    mask = np.zeros((3, 1, 1, 37), np.float32)
    mask[1, ..., 5:], mask[2, ..., ::2] = low, low
    got = attend(given, machine, (q, k, v), mask)
    v[1, 5:], v[2, ::2] = 1e30, -1e30
    np.testing.assert_array_equal(got, attend(given, machine, (q, k, v), mask))


@on(["vnni", "widen8"])
@pytest.mark.parametrize("queries", [2, 20])
def test_a_query_of_nan_gives_nan(machine: Machine, queries: int) -> None:
    for given in (FORMS["float mask of keys"], FORMS["window of a padded cache"]):
        q, k, v = rows(given, 3, queries, 37)
        q[1, 1] = np.nan
        mask = np.zeros((3, 1, 1, 37), np.float32) if given.mask else None
        got = attend(given, machine, (q, k, v), mask, lengths=[37] * 3 if given.lengths else None)
        assert np.isnan(got[1, 1]).all()
        assert np.isfinite(np.delete(got.reshape(3 * queries, -1), queries + 1, 0)).all()


@on(["vnni", "widen8"])
@pytest.mark.parametrize("size", [8, 16, 48, 128])
def test_heads_of_usual_sizes(machine: Machine, size: int) -> None:
    given = spec("float32", False, False, False, d=size, kv_heads=2)
    for queries, keys in ((1, 40), (17, 33)):
        check(given, machine, queries, keys)


def test_kernel_names_are_unique() -> None:
    plain = spec("float32", False, False, False)
    changes: list[dict[str, Any]] = [
        {}, {"kv_heads": 2}, {"v_d": 16}, {"scale": 0.125}, {"dtype": "bfloat16"}, {"layout": "packed"},
        {"layout": "heads"}, {"kv_layout": "heads"}, {"mask": "bool", "axes": "b11k"},
        {"mask": "float32", "axes": "b11k"}, {"mask": "bool", "axes": "bhqk"}, {"causal": True},
        {"window": (2, -1)}, {"window": (-1, 2)}, {"window": (21, 1)}, {"softcap": 2.0},
        {"past": True}, {"lengths": True},
    ]  # fmt: skip
    names = {replace(plain, **change).name for change in changes}
    assert len(names) == len(changes)
    assert all(name.isidentifier() for name in names)
    # Names have scales to seven digits.
    assert replace(plain, scale=0.125).name == replace(plain, scale=0.12500001).name
