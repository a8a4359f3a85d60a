"""Symbolic sizes: torch's expressions as dims, and dims as values of the graph.

torch.export expresses every size in terms of input sizes. Converters therefore pass sizes as dims, and a
size is computed in the graph (from the ``Shape`` of an input) only if an op reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tersor.errors import Unsupported
from tersor.ir import Dim, Graph, Sym, Value, symbol
from tersor.ir.dims import Call, KnownDim, parse_dim, substitute, symbols


class Sizes:
    """The symbols of a traced program, and the values in the graph from which they can be computed."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._names: dict[str, KnownDim] = {}  # torch's symbol (s43) -> dim
        self._given: dict[str, Sym] = {}  # The user's name -> dim
        self._dims: dict[str, Dim] = {}
        self._sources: dict[str, Callable[[], Value]] = {}
        self._vectors: dict[KnownDim, Value] = {}
        self._scalars: dict[KnownDim, Value] = {}
        self._constants: dict[tuple[int, ...], Value] = {}

    # -- torch's sizes as dims ---------------------------------------------------------------------

    def name(self, torch_symbol: str, given: str) -> None:
        """Gives a symbol of torch the user's name, unless it has a name. Equal names are one size."""
        if given not in self._given:
            self._given[given] = self._fresh(given)
        self._names.setdefault(torch_symbol, self._given[given])

    def name_default(self, torch_symbol: str, name: str) -> None:
        """Gives a symbol of torch a name, unless it has one. Equal names are made distinct."""
        if torch_symbol not in self._names:
            self._names[torch_symbol] = self._fresh(name)

    def _fresh(self, name: str) -> Sym:
        """A symbol named ``name``, with a number if that is in use."""
        used, number = {*self._names.values(), *self._given.values()}, 0
        candidate = symbol(name)
        while candidate in used:
            number += 1
            candidate = symbol(f"{name}_{number}")
        return candidate

    def dim(self, size: Any) -> Dim:
        """A torch size (an int or SymInt) as a dim; None if dims cannot express it."""
        if isinstance(size, int):
            return size
        text = str(size.node.expr)
        if text not in self._dims:
            try:
                parsed = parse_dim(text)
            except ValueError:
                parsed = None
            for name in sorted(symbols(parsed) if parsed is not None else ()):
                self.name_default(name, name)
            self._dims[text] = None if parsed is None else substitute(parsed, self._names)
        return self._dims[text]

    def dims(self, shape: Sequence[Any]) -> tuple[Dim, ...]:
        return tuple(self.dim(size) for size in shape)

    # -- sources of symbols ------------------------------------------------------------------------

    def add_source(self, value: Value, axis: int, dim: Dim) -> None:
        """Records that ``dim`` is the size of ``value`` along ``axis``. If it is ``a*s + b`` with a symbol
        ``s`` that has no source yet, ``s`` is computed from it."""
        if not isinstance(dim, Sym):
            return
        linear = [(m, c) for m, c in dim.terms if m]
        offset = sum(c for m, c in dim.terms if not m)
        if len(linear) != 1 or len(linear[0][0]) != 1 or not isinstance(linear[0][0][0], str):
            return
        name, factor = linear[0][0][0], linear[0][1]
        if factor > 0 and name not in self._sources:
            self._sources[name] = lambda: self._solve(value, axis, factor, offset)

    def add_scalar_source(self, name: str, scalar: Value) -> None:
        """Records that the symbol ``name`` is the element of ``scalar`` (``Tensor.item()``)."""
        self._sources[name] = lambda: self._emit("Reshape", scalar, self.constant((1,)))

    def _solve(self, value: Value, axis: int, factor: int, offset: int) -> Value:
        size = self.graph.emit("Shape", [value], {"start": axis, "end": axis + 1}, scope="")
        if offset:
            size = self._emit("Sub", size, self.constant((offset,)))
        return size if factor == 1 else self._emit("Div", size, self.constant((factor,)))

    # -- dims as values ----------------------------------------------------------------------------

    def constant(self, numbers: tuple[int, ...]) -> Value:
        """A vector of integers; equal vectors share a constant."""
        if numbers not in self._constants:
            self._constants[numbers] = self.graph.constant(np.array(numbers, np.int64), "sizes")
        return self._constants[numbers]

    def vector(self, dim: KnownDim) -> Value:
        """A dim as i64[1].

        Raises:
            Unsupported: it contains a symbol without a source.
        """
        if isinstance(dim, int):
            return self.constant((dim,))
        if dim not in self._vectors:
            self._vectors[dim] = self._compute(dim)
        return self._vectors[dim]

    def scalar(self, dim: KnownDim) -> Value:
        """A dim as i64[]."""
        if dim not in self._scalars:
            if isinstance(dim, int):
                self._scalars[dim] = self.graph.constant(np.array(dim, np.int64), "size")
            else:
                empty = self.constant(())
                self._scalars[dim] = self._emit("Reshape", self.vector(dim), empty)
        return self._scalars[dim]

    def shape(self, dims: Sequence[Dim]) -> Value:
        """Dims as one vector: a constant if all are integers, else a Concat of constants and computed sizes.

        Raises:
            Unsupported: a dim is unknown.
        """
        parts: list[list[int] | KnownDim] = []
        for dim in dims:
            if dim is None:
                raise Unsupported("a size depends on data, not only on shapes of inputs")
            if not isinstance(dim, int):
                parts.append(dim)
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(dim)
            else:
                parts.append([dim])
        values = [self.constant(tuple(p)) if isinstance(p, list) else self.vector(p) for p in parts]
        if not values:
            return self.constant(())
        if len(values) == 1:
            return values[0]
        return self.graph.emit("Concat", values, {"axis": 0}, scope="")

    def _compute(self, dim: Sym) -> Value:
        total: Value | None = None
        for monomial, coefficient in dim.terms:
            product = self.constant((coefficient,)) if coefficient != 1 or not monomial else None
            for atom in monomial:
                value = self._call(atom) if isinstance(atom, Call) else self._symbol(atom)
                product = value if product is None else self._emit("Mul", product, value)
            assert product is not None
            total = product if total is None else self._emit("Add", total, product)
        assert total is not None
        return total

    def _symbol(self, name: str) -> Value:
        own = symbol(name)
        if own not in self._vectors:
            if name not in self._sources:
                raise Unsupported(f"size {name!r} depends on data, not only on shapes of inputs")
            self._vectors[own] = self._sources[name]()
        return self._vectors[own]

    def _call(self, call: Call) -> Value:
        a, b = (self.vector(argument) for argument in call.arguments)
        # For sizes, which are not negative, Div (which truncates) is floor division.
        return self._emit({"//": "Div", "max": "Max", "min": "Min"}[call.function], a, b)

    def _emit(self, op: str, *operands: Value) -> Value:
        return self.graph.emit(op, list(operands), scope="")
