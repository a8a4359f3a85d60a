"""Symbolic dimensions: polynomials with integer coefficients over named sizes.

A dimension is an ``int``, a :class:`Sym`, or ``None`` if unknown.  A ``Sym`` is always in canonical form,
so equal sizes compare equal whatever order they were computed in:

    batch*12 == 12*batch,   (past + seq) - past == seq,   batch*seq*384 // (batch*seq) == 384

What is not a polynomial (a floor division with a remainder, a maximum) becomes an *atom*: a :class:`Call`
that is treated as one more symbol.
"""

from __future__ import annotations

import ast
import hashlib
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np

Dim = Union[int, "Sym", None]
KnownDim = Union[int, "Sym"]

# Beyond these limits a dim counts as unknown: repeated products of sums grow exponentially.
MAX_TERMS = 64
MAX_DEGREE = 32
MAX_TEXT = 500  # Characters of an expression.
MAX_DEPTH = 32  # Nested calls: hashing, comparing and printing recurse.
MAX_NAME = 200
LARGEST = 2**63 - 1

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")


class TooComplex(ValueError):
    """A dim's expression exceeds the limits above."""


@dataclass(frozen=True)
class Call:
    """An atom: ``function(arguments)`` with function one of ``//``, ``max``, ``min``."""

    function: str
    arguments: tuple[KnownDim, ...]

    def __str__(self) -> str:
        if self.function == "//":
            # Brackets around negative numbers too: in a sum, a + -3//(b) would print as a - 3//(b).
            left, right = (
                str(a) if isinstance(a, int) and a >= 0 else f"({a})" for a in self.arguments
            )
            return f"{left}//{right}"
        return f"{self.function}({', '.join(map(str, self.arguments))})"


Atom = str | Call
Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class Sym:
    """A polynomial: ``terms`` maps sorted monomials to nonzero integer coefficients."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: KnownDim) -> KnownDim:
        return _canonical([*self.terms, *_terms(other)])

    def __mul__(self, other: KnownDim) -> KnownDim:
        return _canonical([(ma + mb, ca * cb) for ma, ca in self.terms for mb, cb in _terms(other)])

    def __sub__(self, other: KnownDim) -> KnownDim:
        return self + other * -1

    def __rsub__(self, other: KnownDim) -> KnownDim:
        return self * -1 + other

    def __neg__(self) -> KnownDim:
        return self * -1

    __radd__ = __add__
    __rmul__ = __mul__

    def __floordiv__(self, other: KnownDim) -> KnownDim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: KnownDim) -> KnownDim:
        return floordiv(other, self)

    def __str__(self) -> str:
        return " + ".join(_term_text(m, c) for m, c in self.terms).replace("+ -", "- ")

    def __repr__(self) -> str:
        return f"Sym({self})"


def symbol(name: str) -> Sym:
    """The dimension called ``name``, in a spelling that :func:`parse_dim` reads: characters that a (dotted)
    identifier cannot have become ``_``, a keyword gets a leading ``_``, and a long name is cut to its
    beginning and a hash."""
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME // 2]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    if not _NAME.match(name):
        name = re.sub(r"[^A-Za-z0-9_]", "_", name) or "_"
        name = "_" + name if name[0].isdigit() else name
    name = ".".join("_" + part if keyword.iskeyword(part) else part for part in name.split("."))
    return Sym((((name,), 1),))


def floordiv(a: KnownDim, b: KnownDim) -> KnownDim:
    """``a // b``: a polynomial if ``b`` divides ``a``, otherwise an atom."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    exact = divide(a, b)
    return exact if exact is not None else _atom("//", (a, b))


def ceil_div(a: KnownDim, b: int) -> KnownDim:
    """``a / b`` rounded up, for ``b`` > 0."""
    exact = divide(a, b)
    return exact if exact is not None else floordiv(a + (b - 1), b)


def divide(a: KnownDim, b: KnownDim) -> KnownDim | None:
    """The quotient if the polynomial ``b`` divides ``a`` without remainder, else None.

    Long division by leading terms: (batch*past + batch*seq) / (past + seq) == batch.
    """
    if a == b:
        return 1
    if b == 0:
        return None
    atoms = sorted({x for dim in (a, b) for m, _ in _terms(dim) for x in m}, key=str)

    def degrees(term: tuple[Monomial, int]) -> tuple[int, ...]:
        return tuple(term[0].count(atom) for atom in atoms)

    leading = max(_terms(b), key=degrees)
    quotient: KnownDim = 0
    while a != 0:
        part = _divide_term(max(_terms(a), key=degrees), leading)
        if part is None:
            return None
        quotient, a = quotient + part, a - part * b
    return quotient


def _divide_term(a: tuple[Monomial, int], b: tuple[Monomial, int]) -> KnownDim | None:
    rest = list(a[0])
    for atom in b[0]:
        if atom not in rest:
            return None
        rest.remove(atom)
    return None if a[1] % b[1] else _canonical([(tuple(rest), a[1] // b[1])])


def maximum(a: KnownDim, b: KnownDim) -> KnownDim:
    return _extreme("max", a, b)


def minimum(a: KnownDim, b: KnownDim) -> KnownDim:
    return _extreme("min", a, b)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of ``dims``; zero if one is zero, else None if one is unknown."""
    result: Dim = 1
    for dim in dims:
        if dim == 0:
            return 0
        try:
            result = None if dim is None or result is None else result * dim
        except TooComplex:
            result = None
    return result


def dim_array(dims: Sequence[Dim], shape: Sequence[int] | None = None) -> np.ndarray:
    """An object array of dims, by default a vector: the contents of an integer tensor."""
    array = np.empty(len(dims), object)
    array[:] = dims
    return array if shape is None else array.reshape(shape)


def evaluate(dim: KnownDim, sizes: Mapping[str, int]) -> int:
    """The value of ``dim`` for these sizes.

    Raises:
        KeyError: a symbol of ``dim`` has no size.
    """
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, coefficient in dim.terms:
        for atom in monomial:
            coefficient *= sizes[atom] if isinstance(atom, str) else _evaluate_call(atom, sizes)
        total += coefficient
    return total


def substitute(dim: Dim, sizes: Mapping[str, KnownDim]) -> Dim:
    """``dim`` with the symbols in ``sizes`` replaced."""
    if not isinstance(dim, Sym):
        return dim
    total: KnownDim = 0
    for monomial, coefficient in dim.terms:
        term: KnownDim = coefficient
        for atom in monomial:
            term = term * _substitute_atom(atom, sizes)
        total = total + term
    return total


def symbols(dim: Dim) -> set[str]:
    """Names of the symbols in ``dim``."""
    if not isinstance(dim, Sym):
        return set()
    names: set[str] = set()
    for monomial, _ in dim.terms:
        for atom in monomial:
            names |= {atom} if isinstance(atom, str) else set().union(*map(symbols, atom.arguments))
    return names


def parse_dim(text: str) -> Dim:
    """Reads what ``str(dim)`` writes, and the expressions of torch's symbolic shapes.

    Raises:
        ValueError: ``text`` is not an expression of names, integers, ``+ - * // ** max min``, or is too
            large.
    """
    if text.strip() == "?":
        return None
    if len(text) > MAX_TEXT:
        raise TooComplex(f"not a dimension: {text[:20]!r} and {len(text) - 20} more characters")
    try:
        return _from_ast(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"not a dimension: {text!r}") from error
    except (RecursionError, MemoryError):
        raise TooComplex(f"not a dimension: {text!r} is nested too deeply") from None


def _from_ast(node: ast.expr) -> KnownDim:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name() | ast.Attribute():
            return symbol(ast.unparse(node))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _from_ast(operand) * -1
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))) if power >= 0:
            if power > MAX_DEGREE:
                raise TooComplex(f"the exponent {power} is over {MAX_DEGREE}")
            result: KnownDim = 1
            for _ in range(power):
                result = result * _from_ast(left)
            return result
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _from_ast(left), _from_ast(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv():
                    return floordiv(a, b)
        case ast.Call(func=ast.Name(id=function), args=args) if function.lower() in ("max", "min"):
            values = [_from_ast(arg) for arg in args]
            result = values[0]
            for value in values[1:]:
                result = _extreme(function.lower(), result, value)
            return result
    raise ValueError(f"not a dimension: {ast.unparse(node)!r}")


def _terms(dim: KnownDim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Sym) else (((), dim),)


def _canonical(terms: Iterable[tuple[Monomial, int]]) -> KnownDim:
    sums: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        if len(monomial) > MAX_DEGREE:
            raise TooComplex(f"a product of {len(monomial)} sizes")
        key = tuple(sorted(monomial, key=str))
        sums[key] = sums.get(key, 0) + coefficient
        if len(sums) > MAX_TERMS:
            raise TooComplex(f"a sum of more than {MAX_TERMS} products")
    if any(m and abs(c) > LARGEST for m, c in sums.items()):
        raise TooComplex("a coefficient of more than 64 bits")
    nonzero = ((m, c) for m, c in sums.items() if c)
    result = sorted(nonzero, key=lambda t: (not t[0], tuple(map(str, t[0]))))
    if not any(monomial for monomial, _ in result):
        return result[0][1] if result else 0
    return Sym(tuple(result))


def _atom(function: str, arguments: tuple[KnownDim, ...]) -> Sym:
    atom = Call(function, arguments)
    if len(str(atom)) > MAX_TEXT:
        raise TooComplex(f"{function} of expressions of more than {MAX_TEXT} characters")
    if max(map(_depth, arguments)) >= MAX_DEPTH:
        raise TooComplex(f"{function} of expressions nested more than {MAX_DEPTH} deep")
    return Sym((((atom,), 1),))


def _depth(dim: KnownDim) -> int:
    """How deeply calls are nested."""
    calls = [a for m, _ in _terms(dim) for a in m if isinstance(a, Call)]
    return max((1 + max(map(_depth, call.arguments)) for call in calls), default=0)


def _extreme(function: str, a: KnownDim, b: KnownDim) -> KnownDim:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b) if function == "max" else min(a, b)
    if a == b:
        return a
    return _atom(function, tuple(sorted((a, b), key=str)))


def _call(function: str, a: KnownDim, b: KnownDim) -> KnownDim:
    return floordiv(a, b) if function == "//" else _extreme(function, a, b)


def _evaluate_call(call: Call, sizes: Mapping[str, int]) -> int:
    result = _call(call.function, *(evaluate(argument, sizes) for argument in call.arguments))
    assert isinstance(result, int)
    return result


def _substitute_atom(atom: Atom, sizes: Mapping[str, KnownDim]) -> KnownDim:
    if isinstance(atom, str):
        return sizes.get(atom, symbol(atom))
    a, b = (substitute(argument, sizes) for argument in atom.arguments)
    assert a is not None and b is not None
    return _call(atom.function, a, b)


def _term_text(monomial: Monomial, coefficient: int) -> str:
    if not monomial:
        return str(coefficient)
    # A floor division inside a product needs brackets: 2*(seq//2), not 2*seq//2.
    several = len(monomial) > 1 or coefficient != 1
    text = "*".join(f"({a})" if several and isinstance(a, Call) else str(a) for a in monomial)
    if abs(coefficient) != 1:
        return f"{coefficient}*{text}"
    return text if coefficient == 1 else f"-{text}"
