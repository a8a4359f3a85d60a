"""What every registered form has to keep: the oracle is numpy on the decoded numbers.

A form is tested over its own examples, and over those of every form inside it, two levels deep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import InvalidGraph
from tersor.ir import (
    Affine,
    Dense,
    DType,
    Encoding,
    Graph,
    Masked,
    Packed,
    TensorType,
    concat,
    load,
    parse,
    print_graph,
    save,
    weights_of,
)
from tersor.ir.encodings import FORMS, Layer, register
from tersor.ir.encodings.codebook import Codebook

ELEMENTS = [
    np.float32, np.float16, np.int8, np.uint8, ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint2,
]  # fmt: skip
# Empty, one row, odd sizes that no block divides, and whole blocks.
SHAPES = [(0,), (3,), (2, 0), (1, 5), (3, 5), (4, 4), (2, 3, 4)]


def numbers(shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 4, shape)
    return ((small - 2) / 4).astype(dtype) if dtype is np.float32 else small.astype(dtype)


def encodings(form: str, shape: tuple[int, ...], seed: int = 0, within: str = "") -> list[Encoding]:
    """Examples of a form over ``numbers``; what is inside them is of the form ``within``, if that can be."""
    inside: list[Encoding] = [Dense(numbers(shape, dtype, seed)) for dtype in ELEMENTS]
    plain = [e for i in inside for e in FORMS[form].examples(i)]
    between = [e for i in inside for e in FORMS[within].examples(i)] if within else []
    return [e for i in between for e in FORMS[form].examples(i)] or plain


def drawn(form: str) -> st.SearchStrategy[Encoding]:
    shapes = st.sampled_from(SHAPES) | st.lists(st.integers(0, 5), min_size=1, max_size=3).map(
        tuple
    )
    kinds = st.tuples(shapes, st.integers(0, 9), st.sampled_from(["", *FORMS]))
    return kinds.flatmap(lambda kind: st.sampled_from(encodings(form, *kind)))


def check(encoding: Encoding, data: st.DataObject, folder: Path) -> None:
    """The whole contract, of one encoding."""
    check_on_disk(encoding, folder)
    whole = encoding.decode()
    assert TensorType(DType.of(whole), whole.shape) == encoding.type
    assert encoding.is_dense == (encoding.layer(Dense) is encoding)
    np.testing.assert_array_equal(encoding.is_zero(), whole == 0)
    check_storage(encoding, whole)
    check_order(encoding, whole, data)
    check_positions(encoding, whole, data)
    check_masks(encoding, whole)
    check_text(encoding)


def check_storage(encoding: Encoding, whole: np.ndarray) -> None:
    arrays = encoding.arrays()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    copies = {name: array.copy() for name, array in arrays.items()}
    again = encoding.rebuild(copies)
    assert type(again) is type(encoding)
    assert (again.digest, again.describe()) == (encoding.digest, encoding.describe())
    np.testing.assert_array_equal(again.decode(), whole)
    # Elements by their bits; what they share, by its bytes. Nothing else is needed to decode.
    stored = sum(-(-a.size * DType.of(a).bits // 8) for a in arrays.values())
    assert encoding.stored_bytes(0) <= encoding.nbytes <= max(stored, encoding.stored_bytes(0))
    assert encoding.nbytes - encoding.stored_bytes(0) <= -(-whole.size * encoding.bits // 8)


def check_on_disk(encoding: Encoding, folder: Path) -> None:
    graph = Graph()
    for i in range(2):
        graph.constant(encoding, f"c{i}")
    graph.constant(np.arange(9), "other")
    again = load(save(graph, folder / "constants.graph"))
    assert print_graph(again) == print_graph(graph)
    read = again.constants["c1"].encoding
    assert read is not None and type(read) is type(encoding)
    assert (read.digest, read.describe()) == (encoding.digest, encoding.describe())
    assert read.nbytes == encoding.nbytes
    for name, array in encoding.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name], array)
    if "#" in print_graph(again).split("@other")[0]:  # Else its numbers are in the text.
        assert read.memory_order == encoding.memory_order
        assert read.place == again.constants["c0"].encoding.place  # type: ignore[union-attr]


def check_order(encoding: Encoding, whole: np.ndarray, data: st.DataObject) -> None:
    perm = data.draw(st.permutations(range(whole.ndim)))
    turned = encoding.permute(perm)
    assert turned.type == TensorType(encoding.type.dtype, whole.transpose(perm).shape)
    np.testing.assert_array_equal(turned.decode(), whole.transpose(perm))
    if type(turned) is type(encoding):
        assert turned.nbytes == encoding.nbytes
        assert turned.place == encoding.place or not whole.size
        assert sorted(turned.memory_order) == list(range(whole.ndim))
        back = turned.permute(np.argsort(perm).tolist())
        assert back.digest == encoding.digest
    flat = encoding.reshape((whole.size,))
    for other in (flat, turned.reshape((whole.size,))):
        assert other is None or other.type == TensorType(encoding.type.dtype, (whole.size,))
    if flat is not None:
        np.testing.assert_array_equal(flat.decode(), whole.reshape(-1))


def check_positions(encoding: Encoding, whole: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, whole.ndim - 1))
    n = whole.shape[axis]
    taken = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=6)) if n else [], np.int64)
    for positions in (taken, np.arange(n)[: n // 2], np.arange(n)):
        part = encoding.take(positions, axis)
        np.testing.assert_array_equal(part.decode(), np.take(whole, positions, axis))
        assert part.type.dtype is encoding.type.dtype
    others = [encoding, encoding.take(taken, axis), encoding.unmasked]
    joined = concat(others, axis)
    assert joined.type.dtype is encoding.type.dtype
    np.testing.assert_array_equal(
        joined.decode(), np.concatenate([o.decode() for o in others], axis)
    )
    if encoding.concat_key(axis) is not None:
        assert type(concat([encoding, encoding], axis)) is type(encoding)


def check_masks(encoding: Encoding, whole: np.ndarray) -> None:
    mask = (np.arange(whole.size) % 2 == 0).reshape(whole.shape)
    want = np.where(mask, whole, np.zeros((), whole.dtype))
    np.testing.assert_array_equal(encoding.zeroed(mask).decode(), want)
    masked = Masked.of(mask, encoding)
    np.testing.assert_array_equal(masked.decode(), want)
    np.testing.assert_array_equal(encoding.unmasked.decode(), whole)
    assert encoding.unmasked.mask is None
    if encoding.mask is not None:
        assert not whole[~encoding.mask].any()
    one = encoding.with_values(Dense(np.ones(whole.shape, whole.dtype)))
    stays = np.ones(whole.shape, bool) if encoding.mask is None else encoding.mask
    np.testing.assert_array_equal(one.decode(), stays.astype(whole.dtype))
    if whole.dtype == np.float32:
        twice = encoding.scaled(np.float32(2), None)
        np.testing.assert_array_equal(twice.decode(), 2 * whole)


def check_text(encoding: Encoding) -> None:
    graph = Graph()
    graph.constant(encoding, "c")
    text = print_graph(graph)
    for weights in ({}, weights_of(graph)):
        if "#" in text and not weights:
            continue
        again = parse(text, weights=weights)
        assert print_graph(again) == text
        read = again.constants["c"].encoding
        assert read is not None and read.digest == encoding.digest
        assert read.describe() == encoding.describe()
        assert read.arrays().keys() == encoding.arrays().keys()
        np.testing.assert_array_equal(read.decode(), encoding.decode())
    few = all(a.size <= 8 for a in encoding.arrays().values())
    assert ("#" in text) == (not few or math.prod(encoding.type.shape) > 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files need not outlive a power cut."""
    monkeypatch.setattr("tersor.files.storage.os.fsync", lambda handle: None)
    return tmp_path


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_keeps_the_contract(form: str, folder: Path) -> None:
    @given(encoding=drawn(form), data=st.data())
    def holds(encoding: Encoding, data: st.DataObject) -> None:
        check(encoding, data, folder)

    holds()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_has_examples_at_every_shape(form: str) -> None:
    for shape in SHAPES:
        assert encodings(form, shape), shape


def test_forms_nest() -> None:
    assert {"masked(affine", "masked(packed", "cast(masked", "affine(masked"} <= {
        "(".join(e.describe().split("(")[:2])
        for form in FORMS
        for within in FORMS
        for e in encodings(form, (3, 5), within=within)
    }


# -- a form is one file ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Negated(Layer):
    """-w: all that a new form has to say."""

    values: Encoding
    form: ClassVar[str] = "negated"

    def decode(self) -> np.ndarray:
        return np.asarray(-self.values.decode())

    @classmethod
    def examples(cls, inner: Encoding) -> Iterator[Encoding]:
        if inner.type.dtype is DType.F32:
            yield cls(inner)


@pytest.fixture
def negated() -> Iterator[str]:
    register(Negated)
    yield Negated.form
    del FORMS[Negated.form]


def test_a_new_form_is_one_class(negated: str, folder: Path) -> None:
    test_every_form_keeps_the_contract(negated, folder)
    test_every_form_has_examples_at_every_shape(negated)
    text = """graph main() -> () {
  @w: f32[2] = negated(affine(i8[2] [1, -2], scale = f32[] [0.5], zero_point = i8[] [0]))
}
"""
    graph = parse(text)
    assert print_graph(graph) == text
    np.testing.assert_array_equal(graph.constants["w"].numpy(), np.array([-0.5, 1.0], np.float32))
    assert graph.constants["w"].encoding.nbytes == 2 + 4  # type: ignore[union-attr]


def test_names_of_forms_are_unique() -> None:
    with pytest.raises(ValueError, match="two encodings are called dense"):
        register(type("Other", (Negated,), {"form": "dense"}))
    assert FORMS["dense"] is Dense


# -- sub-byte values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_affine_codes_of_any_width_take_their_bits(bits: int, signed: bool) -> None:
    low = -(1 << bits - 1) if signed else 0
    codes = (
        (low + np.arange(21) % (1 << bits)).astype(np.int8 if signed else np.uint8).reshape(3, 7)
    )
    zero = np.zeros(7, codes.dtype)
    encoding = Affine(codes, np.ones(7, np.float32), zero, axis=1, bits=bits)
    assert encoding.bits == bits
    assert encoding.nbytes == math.ceil(21 * bits / 8) + 7 * 4
    # That is what lies in memory, too.
    in_memory = encoding.arrays()
    assert sum(a.nbytes for n, a in in_memory.items() if n.startswith("codes")) == math.ceil(
        21 * bits / 8
    )
    np.testing.assert_array_equal(encoding.values, codes)
    assert encoding.values.dtype == codes.dtype


def test_four_bits_are_packed_as_onnx_packs_them() -> None:
    codes = np.array([1, -2, 7], ml_dtypes.int4)
    np.testing.assert_array_equal(Packed.of(codes).data, np.array([0xE1, 0x07], np.uint8))
    encoding = Affine(codes, np.float32(1) * np.ones(()), np.zeros((), ml_dtypes.int4))
    assert encoding.describe() == "affine(i4)"
    assert encoding.bits == 4


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="the numbers do not fit in i3"):
        Packed.of(np.array([4], np.int8), 3)
    with pytest.raises(ValueError, match="f32 cannot be packed to 4 bits"):
        Packed.of(np.zeros(2, np.float32), 4)
    with pytest.raises(ValueError, match="i8 cannot be packed to 9 bits"):
        Packed.of(np.zeros(2, np.int8), 9)
    packed = Packed.of(np.array([1, 2], np.int8), 3)
    fields_of = {f.name: getattr(packed, f.name) for f in fields(packed)}
    with pytest.raises(ValueError, match=r"i3\[2\] is u8\[1\] packed, not uint8\[2\]"):
        Packed(**{**fields_of, "data": np.zeros(2, np.uint8)})
    with pytest.raises(ValueError, match="unused bits after the last element"):
        Packed(**{**fields_of, "data": np.array([0b11000000], np.uint8)})


def test_a_transpose_of_packed_values_is_a_view_of_them() -> None:
    encoding = Packed.of(np.arange(6).reshape(2, 3).astype(ml_dtypes.int4))
    turned = encoding.permute((1, 0))
    assert np.shares_memory(turned.data, encoding.data)
    assert (turned.place, turned.memory_order) == (encoding.place, (1, 0))


# -- codebooks ---------------------------------------------------------------------------------------


def test_a_codebook_takes_its_indices_and_its_table() -> None:
    codes = (np.arange(35) % 5).astype(np.uint8).reshape(7, 5)
    shared = Codebook(codes, np.arange(5, dtype=np.float32))
    assert shared.describe() == "codebook(u3, levels=5)"
    assert shared.nbytes == math.ceil(35 * 3 / 8) + 5 * 4
    np.testing.assert_array_equal(shared.decode(), codes.astype(np.float32))
    table = np.arange(35, dtype=np.float32).reshape(7, 5)
    by_row = Codebook(codes, table, axis=0)
    want = [[table[i, codes[i, j]] for j in range(5)] for i in range(7)]
    np.testing.assert_array_equal(by_row.decode(), np.array(want))
    pruned = Masked.of(codes > 1, shared)
    assert pruned.describe() == "masked(codebook(u3, levels=5), kept=21)"
    np.testing.assert_array_equal(pruned.decode(), np.where(codes > 1, codes, 0))
    assert pruned.nbytes == math.ceil(35 / 8) + math.ceil(21 * 3 / 8) + 5 * 4
    without_zero = Masked.of(codes > 1, Codebook(codes % 4, np.arange(1, 5, dtype=np.float32)))
    assert without_zero.describe() == "masked(codebook(u3, levels=5), kept=21)"
    np.testing.assert_array_equal(without_zero.decode(), np.where(codes > 1, codes % 4 + 1, 0))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("axis", [None, 0])
def test_a_codebook_of_256_levels_is_pruned(first: int, axis: int | None) -> None:
    codes = np.arange(512, dtype=np.uint16).reshape(2, 256).astype(np.uint8)
    table = np.arange(first, first + 256, dtype=np.float32)
    book = Codebook(codes, table if axis is None else np.stack([table, table]), axis)
    pruned = Masked.of(codes % 3 == 0, book)
    np.testing.assert_array_equal(
        pruned.decode(), np.where(codes % 3 == 0, codes.astype(int) + first, 0)
    )
    # A byte says which of 256 levels; there is none for a 257th.
    assert (pruned.layer(Codebook) is not None) == (first == 0)


@pytest.mark.parametrize(
    ("codes", "levels", "axis", "message"),
    [
        (np.array([0, 5], np.uint8), 5, None, "codes go to 5 in a table of 5"),
        (np.array([0, 4], np.uint8), 4, None, "the numbers do not fit in u2"),
        (np.array([0, 1], np.int8), 4, None, "codes are i8: indices have no sign"),
        (np.array([0, 1], np.uint8), 4, 0, r"needs a table of shape \(2, 4\), got \(4,\)"),
        (np.array([0, 1], np.uint8), 4, 1, r"axis 1 is outside of shape \(2,\)"),
    ],
)
def test_codebooks_that_do_not_fit_are_refused(
    codes: np.ndarray, levels: int, axis: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Codebook(codes, np.zeros(levels, np.float32), axis)


# -- blocks ------------------------------------------------------------------------------------------


def blockwise(n: int, block: int) -> Affine:
    rng = np.random.default_rng(0)
    blocks = (-(-n // block), 2)
    return Affine(
        rng.integers(-8, 8, (n, 2)).astype(ml_dtypes.int4),
        rng.uniform(0.1, 1, blocks).astype(np.float32),
        rng.integers(-8, 8, blocks).astype(ml_dtypes.int4),
        axis=0,
        block=block,
    )


@pytest.mark.parametrize(
    ("positions", "block"),
    [
        ([*range(32), *range(64, 96)], 32),  # Whole blocks.
        ([*range(96, 100), *range(64, 96)], 4),  # The last one, of 4, first.
        ([*range(64, 96), *range(96, 100)], 32),
        (range(40, 60), 32),  # Within one block.
        ([*range(16), *range(48, 64)], 16),  # Halves: in blocks of half the size.
        ([*range(31), *range(64, 96)], 0),  # Torn apart, to no common size: dense.
    ],
)
def test_whole_blocks_are_cut_in_their_form(positions: range | list[int], block: int) -> None:
    encoding = blockwise(100, 32)
    at = np.array(positions)
    cut = encoding.take(at, 0)
    np.testing.assert_array_equal(cut.decode(), encoding.decode()[at])
    affine = cut.layer(Affine)
    assert (0 if affine is None else affine.block) == block
    assert affine is None or (affine.bits == 4 and affine.nbytes < cut.decode().nbytes)


# -- text that is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("afine(i8[1] [1])", "no encoding is called 'afine', did you mean 'affine'"),
        ("affine(i8[1] [1], scale = f32[] [1])", "missing 1 required positional argument: 'zero_point'"),
        ("affine(i8[1] [1], f32[] [1], i8[] [0], blocks = 2)", "unexpected keyword argument 'blocks'"),
        ("affine(i8[2] [1, 2], f32[] [1], i8[] [0])", r"affine\(i8\) here is of type f32\[2\], not f32\[1\]"),
        ("affine(i8[1] [1], f32[2] [1, 1], i8[2] [0, 0], axis = 0)", r"needs scale and zero point of shape \(1,\)"),
        ("masked(f32[1] [1.0], mask = bool[1] [false])", "outside the mask are not zero"),
        ("cast(f16[1] [1.0], dtype = i8)", "stores floats in a shorter type"),
        ("affine(7, f32[] [1], i8[] [0])", "line 1: "),
        ("affine(seq<f32[1]>, f32[] [1], i8[] [0])", "line 1: "),
        ("affine(i8[1] [1], f32[] [1], i8[] [0]", "unexpected end of text"),
        ("affine(i8[1] [1], f32[] [1], i8[1] [0], axis = 0, block = 9999999999999)", "needs scale and"),
    ],
)  # fmt: skip
def test_constants_that_cannot_be_are_refused_by_their_line(text: str, message: str) -> None:
    with pytest.raises(InvalidGraph, match=message):
        parse(f"graph main() -> () {{ @w: f32[1] = {text} }}")
