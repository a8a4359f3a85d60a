"""Symbolic dims agree with the integers they stand for."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tersor.ir.dims import (
    Dim,
    Sym,
    divide,
    evaluate,
    floordiv,
    maximum,
    minimum,
    parse_dim,
    product,
    substitute,
    symbol,
    symbols,
)

NAMES = ["batch", "seq", "past.len", "n_1"]
SIZES = st.fixed_dictionaries({name: st.integers(1, 50) for name in NAMES})

# Expressions as nested tuples, so that dims and plain integers can be computed side by side.
EXPRESSIONS = st.recursive(
    st.integers(-6, 12) | st.sampled_from(NAMES),
    lambda inner: st.tuples(st.sampled_from(["+", "-", "*", "//", "max", "min"]), inner, inner),
    max_leaves=8,
)


def as_dim(expression: object) -> Dim:
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return symbol(expression)
    op, left, right = expression  # type: ignore[misc]
    a, b = as_dim(left), as_dim(right)
    assert a is not None and b is not None
    assume(op != "//" or b != 0)
    return {
        "+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "//": lambda: floordiv(a, b),
        "max": lambda: maximum(a, b), "min": lambda: minimum(a, b),
    }[op]()  # fmt: skip


def as_int(expression: object, sizes: dict[str, int]) -> int:
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return sizes[expression]
    op, left, right = expression  # type: ignore[misc]
    a, b = as_int(left, sizes), as_int(right, sizes)
    assume(op != "//" or b != 0)
    return {
        "+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "//": lambda: a // b,
        "max": lambda: max(a, b), "min": lambda: min(a, b),
    }[op]()  # fmt: skip


@given(EXPRESSIONS, SIZES)
def test_arithmetic_then_substitution_is_substitution_then_arithmetic(
    expression: object, sizes: dict[str, int]
) -> None:
    expected = as_int(expression, sizes)
    dim = as_dim(expression)
    assert dim is not None
    assert evaluate(dim, sizes) == expected
    assert substitute(dim, sizes) == expected


@given(EXPRESSIONS, SIZES)
def test_a_dim_round_trips(expression: object, sizes: dict[str, int]) -> None:
    as_int(expression, sizes)
    dim = as_dim(expression)
    assert parse_dim(str(dim)) == dim


@given(EXPRESSIONS, EXPRESSIONS, EXPRESSIONS)
def test_equal_polynomials_are_equal_dims(x: object, y: object, z: object) -> None:
    a, b, c = as_dim(x), as_dim(y), as_dim(z)
    assert a is not None and b is not None and c is not None
    assert a + b == b + a
    assert a * b == b * a
    assert (a + b) * c == a * c + b * c
    assert a - a == 0
    assert maximum(a, b) == maximum(b, a)
    assert minimum(a, b) == minimum(b, a)


@given(EXPRESSIONS, EXPRESSIONS)
def test_a_product_divides_by_its_factors(x: object, y: object) -> None:
    a, b = as_dim(x), as_dim(y)
    assert a is not None and b is not None
    assume(b != 0)
    assert divide(a * b, b) == a
    assert floordiv(a * b, b) == a


@given(EXPRESSIONS, EXPRESSIONS, SIZES)
def test_a_quotient_times_the_divisor_is_the_dividend(
    x: object, y: object, sizes: dict[str, int]
) -> None:
    a, b = as_dim(x), as_dim(y)
    assert a is not None and b is not None
    quotient = divide(a, b)
    if quotient is not None and b != 0:
        assert quotient * b == a


def test_division_with_a_remainder_is_an_atom() -> None:
    seq = symbol("seq")
    half = (seq + 1) // 2
    assert divide(seq + 1, 2) is None
    assert isinstance(half, Sym)
    assert str(half) == "(seq + 1)//2"
    assert evaluate(half, {"seq": 4}) == 2
    assert half * 2 != seq + 1


def test_long_division_by_a_sum() -> None:
    batch, past, seq = symbol("batch"), symbol("past"), symbol("seq")
    assert divide(batch * past + batch * seq, past + seq) == batch
    assert divide(batch * past + seq, past + seq) is None


@given(st.text(max_size=12))
def test_a_symbol_of_any_name_round_trips(name: str) -> None:
    dim = symbol(name)
    assert parse_dim(str(dim)) == dim
    assert len(symbols(dim)) == 1


@pytest.mark.parametrize(
    "name", ["in", "lambda", "None", "True", "a.1", "a..b", "1", "", "a.if.b", "x y"]
)
def test_names_that_python_cannot_read_are_rewritten(name: str) -> None:
    dim = symbol(name)
    assert parse_dim(str(dim)) == dim


def test_a_negative_numerator_keeps_its_sign_in_a_sum() -> None:
    seq = symbol("seq")
    dim = symbol("a") + floordiv(-3, seq)
    assert parse_dim(str(dim)) == dim
    assert evaluate(dim, {"a": 0, "seq": 2}) == -2


def test_parsing_powers_and_torch_spelling() -> None:
    a, b = symbol("a"), symbol("b")
    assert parse_dim("a**2 + 2*a*b") == a * a + a * b * 2
    assert parse_dim("Max(1, a, b)") == maximum(maximum(1, a), b)
    assert parse_dim("?") is None


@pytest.mark.parametrize(
    "text", ["", "a b", "a / 2", "f(a)", "1.5", "'a'", "a**b", "a if b else c"]
)
def test_malformed_dims_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="not a dimension"):
        parse_dim(text)


def test_products_with_unknown_dims() -> None:
    seq = symbol("seq")
    assert product([2, seq, 3]) == seq * 6
    assert product([2, None, 3]) is None
    assert product([None, 0]) == 0
    assert product([]) == 1


def test_symbols_includes_those_inside_atoms() -> None:
    a, b, c = symbol("a"), symbol("b"), symbol("c")
    assert symbols(maximum(a, (b + 1) // 2) * c) == {"a", "b", "c"}
    assert symbols(4) == set()


def test_partial_substitution_keeps_the_other_symbols() -> None:
    a, b = symbol("a"), symbol("b")
    assert substitute(a * b + a, {"a": 3}) == b * 3 + 3
    assert substitute(maximum(a, b), {"a": 3, "b": 5}) == 5
    assert substitute(None, {"a": 3}) is None


def test_a_missing_size_is_an_error() -> None:
    with pytest.raises(KeyError, match="seq"):
        evaluate(symbol("seq") * 2, {"batch": 1})
