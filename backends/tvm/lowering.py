"""Lowering: our IR becomes a Relax module, node by node.

Every op has a rule in a family's file under ``ops``: a function ``(lowering, node) -> results`` that
emits Relax calls and returns an expression for each output.  Types and symbolic dims are the IR's own:
a rule emits expressions of its outputs' types.  Constants become parameters of the function, so
that weights are not in the library; the smallest are part of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm_ffi
from tvm import relax, tirx

from tersor.backends.tvm.derive import Derivation, Step, compute, is_derived, steps_of
from tersor.built import Weights
from tersor.ir import Dim, DType, Encoding, Node, Sym, TensorType, Value
from tersor.ir.dims import Call, symbols
from tersor.ops import TABLE, contents_of
from tersor.pipeline.report import Decoded
from tersor.structure.ties import tied_to

INLINE_BYTES = 64  # Constants up to this size are part of the code.

DTYPES: dict[DType, str] = {
    DType.F32: "float32", DType.F64: "float64", DType.F16: "float16", DType.BF16: "bfloat16",
    DType.I64: "int64", DType.I32: "int32", DType.I16: "int16", DType.I8: "int8",
    DType.U64: "uint64", DType.U32: "uint32", DType.U16: "uint16", DType.U8: "uint8",
    DType.BOOL: "bool",
    # A byte each, as in numpy; rules keep results in range.
    DType.I4: "int8", DType.I2: "int8", DType.U4: "uint8", DType.U2: "uint8",
    # Their codes, on which TVM's arithmetic is meaningless.
    DType.F8E4M3FN: "uint8", DType.F8E4M3FNUZ: "uint8", DType.F8E5M2: "uint8",
    DType.F8E5M2FNUZ: "uint8", DType.F4E2M1: "uint8",
}  # fmt: skip
CODES = frozenset(d for d, name in DTYPES.items() if d.is_float and name == "uint8")

Rule = Callable[["Lowering", Node], Sequence[Any]]


def _takes_codes(op: str) -> bool:
    """Whether the rule of an op decodes codes, or only moves elements."""
    return (
        op in ("Cast", "CastLike", "Concat") or TABLE.has(op, "movement") or TABLE.has(op, "shape")
    )


class Refused(Exception):
    """A node has no lowering; the message is the reason."""


class Unavailable(Exception):
    """A node reads a result of a node that was refused."""


@dataclass
class Arrays:
    """The arrays that a module's functions take after their inputs, each once.

    Functions of one graph pack the same weights: equal arrays are recognized by their bytes.

    Attributes:
        arrays: in the order in which they were added.
        derived: by index, how arrays are computed from others when the model is loaded.
        decoded: constants that had to be decoded, by name.
    """

    arrays: list[np.ndarray] = field(default_factory=list)
    decoded: dict[str, Decoded] = field(default_factory=dict)
    derived: dict[int, Derivation] = field(default_factory=dict)
    _places: dict[object, int] = field(default_factory=dict)

    def place(self, array: np.ndarray) -> int:
        """The index of an array, added where it is new."""
        key = _key(array)
        if key not in self._places:
            self._places[key] = len(self.arrays)
            self.arrays.append(array)
        return self._places[key]

    def derive(self, steps: tuple[Step, ...], sources: Sequence[np.ndarray]) -> int:
        """The index of the array that ``steps`` compute from ``sources``; the file stores only these."""
        places = tuple(self.place(as_stored(array)) for array in sources)
        return self.derive_of(steps, places) if steps else places[0]

    def derive_of(self, steps: tuple[Step, ...], places: tuple[int, ...]) -> int:
        """As :meth:`derive`, from arrays given by index."""
        key = (steps, places)
        if key not in self._places:
            array = compute(steps, [self.arrays[place] for place in places])
            self._places[key] = len(self.arrays)
            # Others may be derived from this one in turn.
            self._places.setdefault(_key(array), len(self.arrays))
            self.derived[len(self.arrays)] = Derivation(steps, places)
            self.arrays.append(array)
        return self._places[key]


def _key(array: np.ndarray) -> object:
    return Weights((array,)).sha256, str(array.dtype), array.shape


@dataclass
class Lowering:
    """The state that the rules of one function share.

    Attributes:
        builder: of the module, within the function.
        rules: by op.
        arrays: of the module's parameters.
        symbols: Relax's variables of the named sizes.
        known: names of the sizes that are defined so far, by inputs and emitted results.
        exprs: the expressions of values.
        parameters: of the function, after the graph's inputs: the variable, and the index in ``arrays`` of
            its array.
        kernels: of the module, by name.
        refused: results of nodes that were refused.
        label: of the node that is lowered, for errors of its run.
        joins: dims known to be the size that others broadcast to.
        equal: pairs of dims that were checked to be equal.
    """

    builder: relax.BlockBuilder
    rules: dict[str, Rule]
    arrays: Arrays = field(default_factory=Arrays)
    symbols: dict[str, tirx.Var] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    exprs: dict[Value, Any] = field(default_factory=dict)
    parameters: list[tuple[relax.Var, int]] = field(default_factory=list)
    kernels: dict[str, Any] = field(default_factory=dict)
    refused: set[Value] = field(default_factory=set)
    label: str = ""
    joins: dict[Dim, frozenset[Dim]] = field(default_factory=dict)
    equal: set[frozenset[Dim]] = field(default_factory=set)

    # -- for rules ---------------------------------------------------------------------------------

    def __getitem__(self, value: Value | None) -> Any:
        """The expression of a value.

        Raises:
            Refused: a missing operand, or a dtype that TVM does not have.
            Unavailable: its node was refused.
        """
        if value is None:
            raise Refused("a required operand is missing")
        if value in self.refused:
            raise Unavailable
        if value not in self.exprs:
            self.exprs[value] = self._constant(value)
        return self.exprs[value]

    def _constant(self, value: Value) -> Any:
        assert value.encoding is not None, f"{value!r} is read before it is computed"
        small = value.encoding.type.numel == 0 or value.encoding.nbytes <= INLINE_BYTES
        # Tied constants are stored once, whatever their memory order.
        if small or (value.is_dense and (_in_order(value.encoding) or not tied_to(value))):
            return self.constant(self.numbers(value), value.name)
        return self.derived(*self.steps(value), value.name)

    def numbers(self, constant: Value) -> np.ndarray:
        """The decoded numbers of a constant, to be stored."""
        self.report_decoded(constant, loaded=False)
        return constant.numpy()

    def steps(self, constant: Value) -> tuple[tuple[Step, ...], tuple[np.ndarray, ...]]:
        """How a constant's numbers are computed from its stored arrays when the model is loaded."""
        assert constant.encoding is not None
        self.report_decoded(constant, loaded=is_derived(constant.encoding))
        return steps_of(constant.encoding)

    def report_decoded(self, constant: Value, *, loaded: bool) -> None:
        """Reports that ``constant``, if it is encoded, had to be decoded."""
        encoding, reader = constant.encoding, next((u.op for u in constant.users), "an output")
        if encoding is not None and not encoding.unmasked.is_dense:
            row = Decoded.of(constant, no_kernel(reader, encoding), loaded=loaded)
            self.arrays.decoded.setdefault(constant.name, row)

    def constant(self, array: np.ndarray, name: str = "constant") -> Any:
        """An expression for an array: part of the code where it is tiny, else a parameter."""
        array = as_stored(array)
        dtype = dtype_of(TensorType(DType.of(array), array.shape))
        # TVM does not load empty arrays from a library.
        if 0 < array.nbytes <= INLINE_BYTES and dtype != "bfloat16":
            return relax.const(np.asarray(array, order="C"), dtype)
        return self.parameter(array, name)

    def parameter(self, array: np.ndarray, name: str) -> relax.Var:
        """A new parameter of the function, bound to ``array``."""
        return self.parameter_at(self.arrays.place(as_stored(array)), name)

    def derived(
        self, steps: tuple[Step, ...], sources: Sequence[np.ndarray], name: str
    ) -> relax.Var:
        """A new parameter, computed by ``steps`` from ``sources`` when the model is loaded."""
        return self.parameter_at(self.arrays.derive(steps, sources), name)

    def parameter_at(self, place: int, name: str) -> relax.Var:
        """A new parameter, bound to the array of index ``place``."""
        array = self.arrays.arrays[place]
        type = TensorType(DType.of(array), array.shape)
        var = relax.Var(f"{name}_{len(self.parameters)}", self.relax_type(type))
        self.parameters.append((var, place))
        return var

    def dim(self, dim: Dim) -> Any:
        """A dim as an int64 expression of TVM.

        Raises:
            Refused: it is unknown, or names sizes that are not defined yet.
        """
        if dim is None or not self.is_known(dim):
            raise Refused(f"a dim is known at run time only{f': {dim}' if dim else ''}")
        if not isinstance(dim, Sym):
            return tirx.IntImm("int64", dim)
        total: Any = None
        for monomial, coefficient in dim.terms:
            term: Any = tirx.IntImm("int64", coefficient)
            for atom in monomial:
                term = term * (self.symbol(atom) if isinstance(atom, str) else self._call(atom))
            total = term if total is None else total + term
        return total

    def dims(self, dims: Iterable[Dim] | None) -> list[Any]:
        """Dims as expressions of TVM.

        Raises:
            Refused: the rank or a dim is unknown.
        """
        if dims is None:
            raise Refused("a rank is known at run time only")
        return [self.dim(d) for d in dims]

    def define_sizes(self, value: Value) -> None:
        """Marks the sizes in the dims of ``value`` as known from here on."""
        if isinstance(value.type, TensorType):
            for dim in value.type.dims or ():
                self.define(dim)

    def define(self, dim: Dim) -> None:
        """Marks the sizes in a dim as known from here on."""
        self.known |= symbols(dim)

    def is_known(self, dim: Dim) -> bool:
        """Whether a dim's sizes are known by now."""
        return dim is not None and symbols(dim) <= self.known

    def is_sized(self, value: Value) -> bool:
        """Whether a tensor's sizes are known by now."""
        return value.tensor.dims is not None and all(map(self.is_known, value.tensor.dims))

    def symbol(self, name: str) -> tirx.Var:
        """TVM's variable of a named size."""
        if name not in self.symbols:
            self.symbols[name] = tirx.Var(name, "int64")
        return self.symbols[name]

    def relax_type(self, type: object) -> relax.TensorType:
        """Relax's type of a tensor."""
        dtype = dtype_of(type)
        assert isinstance(type, TensorType)
        return relax.TensorType(self.dims(type.dims), dtype)

    def defining_type(self, value: Value) -> relax.TensorType:
        """The type of a value that defines the sizes in its dims."""
        self.define_sizes(value)
        return self.relax_type(value.type)

    def loose_type(self, value: Value) -> relax.TensorType:
        """The type of a value as far as it is known: without sizes, or even without a rank."""
        dtype, rank = dtype_of(value.type), value.tensor.rank
        if self.is_sized(value):
            return self.relax_type(value.type)
        return relax.TensorType(dtype=dtype, ndim=-1 if rank is None else rank)

    def sized(self, expr: Any, type: TensorType) -> Any:
        """An expression of ``type``, which defines the sizes in its dims that are not known yet."""
        dims = type.dims or (None,)
        if all(map(self.is_known, dims)):
            return expr
        for dim in dims:
            self.define(dim)
        return self.builder.match_cast(self.builder.normalize(expr), self.relax_type(type))

    def shape_of(self, value: Value) -> list[Any]:
        """The dims of a value as TVM's expressions."""
        return self.dims(value.tensor.dims)

    def contents(self, value: Value | None) -> list[Any] | None:
        """Elements of a small integer tensor (a shape, axes) as TVM's expressions, flat; None where
        they are not known before the run."""
        contents = contents_of(value)
        if contents is None or any(d is None for d in contents.reshape(-1)):
            return None
        return [self.dim(d) for d in contents.reshape(-1)]

    def emit(self, expr: Any) -> relax.Var:
        """Binds an expression of Relax to a variable."""
        return self.builder.emit(expr)

    def te(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> relax.Var:
        """Emits a call of the PrimFunc of a TE function."""
        return self.builder.emit_te(function, *args, **kwargs)

    def kernel(self, name: str, make: Callable[[], tirx.PrimFunc]) -> Any:
        """The module's kernel of this name, added where there is none yet."""
        if name not in self.kernels:
            self.kernels[name] = self.builder.add_func(make(), name)
        return self.kernels[name]

    # -- inner -------------------------------------------------------------------------------------

    def _call(self, call: Call) -> Any:
        a, b = (self.dim(argument) for argument in call.arguments)
        if call.function == "//":
            return tirx.floordiv(a, b)
        return tirx.max(a, b) if call.function == "max" else tirx.min(a, b)

    def node(self, node: Node) -> None:
        """Emits a node.

        Raises:
            Refused: it has no lowering.
        """
        rule = self.rules.get(node.op)
        if rule is None:
            raise Refused("no lowering for this op")
        for value in node.outputs:
            if value.uses:
                dtype_of(value.type)
        for type in (v.type for v in (*node.inputs, *node.outputs) if v is not None):
            if isinstance(type, TensorType) and type.dtype in CODES and not _takes_codes(node.op):
                raise Refused(f"{type.dtype.value} elements")
        outer, self.label = self.label, node.label
        results = self._empty(node) or rule(self, node)
        self.label = outer
        for value, expr in zip(node.outputs, results, strict=False):
            if value.uses:
                self.exprs[value] = self._with_type(value, expr)

    def _empty(self, node: Node) -> list[Any]:
        """The results where all are known to be empty, else none: rules need not consider empty loops."""
        types = [value.type for value in node.outputs if value.uses]
        if not types or any(not isinstance(t, TensorType) or t.numel != 0 for t in types):
            return []
        return [self._without_elements(v) if v.uses else None for v in node.outputs]

    def _without_elements(self, value: Value) -> Any:
        dims, dtype = self.dims(value.tensor.dims), dtype_of(value.type)
        if all(isinstance(d, int) for d in value.tensor.dims or ()):
            # Not relax.zeros: TVM would fold it to a constant.
            return self.parameter(np.zeros(value.tensor.shape, value.tensor.dtype.numpy), "empty")
        return self.emit(relax.op.zeros(dims, dtype))

    def _with_type(self, value: Value, expr: Any) -> Any:
        """A result cast to the IR's type, where Relax knows less of its shape."""
        expr = self.builder.normalize(expr)
        wanted = self.defining_type(value)
        if tvm_ffi.structural_equal(expr.ty, wanted):
            return expr
        return self.builder.match_cast(expr, wanted)


def _in_order(encoding: Encoding) -> bool:
    return encoding.memory_order == tuple(range(len(encoding.memory_order)))


def no_kernel(op: str, encoding: Encoding) -> str:
    """Why a constant is decoded for ``op``."""
    return f"TVM has no kernel of {op} that reads {encoding.describe()}"


def as_stored(array: np.ndarray) -> np.ndarray:
    """The array as TVM stores it: integers below a byte as bytes, the smallest floats as codes."""
    dtype = DType.of(array)
    if dtype in CODES:
        return np.asarray(array, order="C").view(np.uint8)
    if dtype not in DTYPES or not dtype.is_integer or dtype.bits >= 8:
        return array
    return array.astype(DTYPES[dtype])  # Not a view: numpy does not define the spare bits.


def dtype_of(type: object) -> str:
    """TVM's name of a tensor's element type.

    Raises:
        Refused: not a tensor, or TVM has no such elements.
    """
    if not isinstance(type, TensorType):
        raise Refused(f"a value of type {type}, which is no tensor")
    if type.dtype not in DTYPES:
        raise Refused(f"{type.dtype.value} elements")
    return DTYPES[type.dtype]
