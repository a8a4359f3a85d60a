"""Walks torch's fx graph and emits ours: what every converter works with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from tersor.errors import InvalidGraph, Unsupported
from tersor.frontends.torch.dtypes import FROM_TORCH, TO_TORCH, array_of, dtype_of
from tersor.frontends.torch.folding import Folded
from tersor.frontends.torch.registry import find
from tersor.frontends.torch.sizes import Sizes
from tersor.ir import Dim, DType, Graph, Sym, TensorType, Value
from tersor.ir.types import UnknownType
from tersor.ops.onnx_schema import TO_ONNX

Operand = Any
"""A Value, a Python number, or a dim."""

# Modules that run several times carry a counter: ``layers.0@1``.
_COUNTER = re.compile(r"@\d+\b")


class Lowering:
    """A graph under construction.

    Attributes:
        graph: where nodes go.
        sizes: symbolic sizes.
        node: the fx node that is being converted.
        result, results: types that torch's tracing found for what it makes (tensors only).
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sizes = Sizes(graph)
        self.node: Any = None
        self.result: TensorType = TensorType(DType.F32, None)
        self.results: list[TensorType] = []
        self.scope = ""
        self._small: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._turned: dict[Value, Value] = {}  # a constant transposed -> as it was

    # -- walking -----------------------------------------------------------------------------------

    def run(self, module: Any, values: dict[Any, Any], folded: Folded | None = None) -> Any:
        """Converts the graph of ``module``, whose placeholders are in ``values``; returns what its
        output node returns, converted. ``folded``: nodes that are constants."""
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            if folded is not None and node in folded:
                values[node] = Late(partial(self._computed, folded, node))
                continue
            if node.op == "get_attr":
                values[node] = _attribute(module, node.target)
            elif node.op == "output":
                return resolve(node.args[0], values)
            else:
                values[node] = self._convert(node, values)
        return ()

    def _computed(self, folded: Folded, node: Any) -> Any:
        made = folded.value(node)
        several = isinstance(made, (tuple, list))
        constants = [
            self.constant(array_of(m, node.name), name=node.name)
            for m in (made if several else [made])
        ]
        return tuple(constants) if several else constants[0]

    def _convert(self, node: Any, values: dict[Any, Any]) -> Any:
        if all(name.startswith("_") and "assert" in name for name in [str(node.name)]):
            return None  # Assertions of the tracer make nothing.
        convert = find(node.target)
        if convert is None:
            raise Unsupported(missing_message(node))
        self.node, self.scope = node, scope_of(node)
        self.results = self._types(node)
        self.result = self.results[0] if self.results else TensorType(DType.F32, None)
        args, kwargs = resolve(node.args, values), resolve(node.kwargs, values)
        try:
            made = convert(self, *args, **kwargs)
        except (Unsupported, InvalidGraph) as error:
            raise type(error)(f"{_place(node)}: {error}") from None
        except TypeError as error:
            raise Unsupported(
                f"{_place(node)} is called in a form not known here: {error}"
            ) from error
        self._settle(node, made)
        return made

    def _types(self, node: Any) -> list[TensorType]:
        val = node.meta.get("val")
        vals = val if isinstance(val, (list, tuple)) else [val]
        return [self.type_of(v) for v in vals if isinstance(v, torch.Tensor)]

    def type_of(self, tensor: Any) -> TensorType:
        return TensorType(dtype_of(tensor.dtype), self.sizes.dims(tensor.shape))

    def _settle(self, node: Any, made: Any) -> None:
        """Gives results the types that tracing found: its guards know more than one node's inference.

        Raises:
            InvalidGraph: they contradict what the op table infers, so that a converter is wrong.
        """
        values = [made] if isinstance(made, Value) else made
        if not isinstance(values, (list, tuple)) or len(values) != len(self.results):
            return
        for value, traced in zip(values, self.results, strict=True):
            if not isinstance(value, Value):
                continue
            if not isinstance(value.type, UnknownType) and not value.tensor.accepts(traced):
                raise InvalidGraph(f"{_place(node)} makes {traced}, but is converted to {value!r}")
            if value.producer is not None and (value.contents is None or value.tensor.dims is None):
                value.type = traced
            for axis, dim in enumerate(traced.dims or ()):
                self.sizes.found_in(value, axis, dim)

    def inline(self, module: Any, operands: Sequence[Any]) -> Any:
        """Converts the body of a higher-order op in place."""
        inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
        node, scope, results = self.node, self.scope, self.results
        made = self.run(module, dict(zip(inputs, operands, strict=True)))
        self.node, self.scope, self.results = node, scope, results
        return made

    # -- emitting ----------------------------------------------------------------------------------

    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """A node of one result, in the scope of the current fx node."""
        kept = {k: v for k, v in attrs.items() if v is not None}
        return self.graph.emit(op, _trimmed(inputs), kept, scope=self.scope)

    def emit_many(
        self, op: str, count: int, *inputs: Value | None, **attrs: Any
    ) -> tuple[Value, ...]:
        """A node of ``count`` results."""
        kept = {k: v for k, v in attrs.items() if v is not None}
        node = self.graph.emit_node(
            op, _trimmed(inputs), kept, names=[""] * count, scope=self.scope
        )
        return node.outputs

    # -- operands ----------------------------------------------------------------------------------

    def constant(self, data: Any, dtype: DType | None = None, name: str = "const") -> Value:
        """A constant; small ones that are equal are one."""
        array = np.asarray(data, dtype.numpy if dtype is not None else None)
        if array.size > 64 or array.dtype.hasobject:
            return self.graph.constant(array, name)
        key = (DType.of(array).value, array.shape, array.tobytes())
        if key not in self._small:
            self._small[key] = self.graph.constant(array, name)
        return self._small[key]

    def ints(self, numbers: Sequence[int]) -> Value:
        """An i64 vector."""
        return self.sizes.constant(tuple(int(n) for n in numbers))

    def shape(self, dims: Sequence[Dim]) -> Value:
        """A vector of sizes, computed from inputs' shapes where they are symbolic."""
        return self.sizes.shape(dims, "it")

    def value(self, operand: Operand, dtype: DType | None = None) -> Value:
        """An operand as a value, cast to ``dtype`` where that is told.

        A number is a constant of ``dtype``, else of torch's default for its kind."""
        if isinstance(operand, Value):
            return operand if dtype is None else self.cast(operand, dtype)
        if isinstance(operand, Sym):
            return self.value(self.sizes.scalar(operand), dtype)
        if dtype is None:
            dtype = dtype_of(torch.result_type(torch.empty((), dtype=torch.bool), operand))
        return self.constant(operand, dtype)

    def cast(self, value: Value, dtype: DType) -> Value:
        """``value`` as ``dtype``; itself where it is that already."""
        if value.tensor.dtype is dtype:
            return value
        if (
            value.encoding is not None
            and value.tensor.is_static
            and np.prod(value.tensor.shape) == 1
        ):
            return self.constant(value.numpy(), dtype)
        return self.emit("Cast", value, to=TO_ONNX[dtype])

    def promote(self, *operands: Operand, dtype: DType | None = None) -> list[Value]:
        """Operands as values of one dtype: the one told, else torch's promotion of them all."""
        common = dtype or self.promoted(*operands)
        return [self.value(o, common) for o in operands]

    def promoted(self, *operands: Operand) -> DType:
        """The dtype that torch computes in: a tensor of rank 0 or a number yields to tensors of its
        category (https://docs.pytorch.org/docs/stable/tensor_attributes.html, type promotion)."""
        stand_ins = [_stand_in(o) for o in operands]
        ranked = sorted(stand_ins, key=lambda s: s.dim() if isinstance(s, torch.Tensor) else -1)
        common = ranked.pop()
        while ranked:
            other = ranked.pop()
            dtype = torch.result_type(common, other)
            rank = common.dim() if isinstance(common, torch.Tensor) else 0
            common = torch.empty((1,) * rank, dtype=dtype, device="meta")
        return FROM_TORCH[
            common.dtype if isinstance(common, torch.Tensor) else torch.result_type(common, 0)
        ]

    def transposed(self, weight: Value) -> Value:
        """A constant matrix [n, k] as a constant [k, n], made once."""
        for turned, original in self._turned.items():
            if original is weight:
                return turned
        turned = self.graph.constant(np.ascontiguousarray(weight.numpy().T), weight.name)
        self._turned[turned] = weight
        return turned

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Constants that nothing reads go. A weight that is read both as it is and transposed (an
        embedding tied to the output layer) becomes one constant again, transposed in the graph."""
        for turned, original in self._turned.items():
            if original.uses and turned.uses:
                first = turned.users[0]
                for user in turned.users:
                    first = user if _stands_before(user, first) else first
                with self.graph.at(first):
                    again = self.graph.emit("Transpose", [original], {"perm": (1, 0)}, scope="")
                self.graph.replace(turned, again)
        for constant in list(self.graph.constants.values()):
            if not constant.uses:
                self.graph.erase_constant(constant)


def _stands_before(node: Any, other: Any) -> bool:
    while other is not None:
        if other is node:
            return True
        other = other._prev
    return False


def _trimmed(inputs: Sequence[Value | None]) -> list[Value | None]:
    kept = list(inputs)
    while kept and kept[-1] is None:
        kept.pop()
    return kept


def _stand_in(operand: Operand) -> Any:
    if isinstance(operand, Value):
        dtype = TO_TORCH[operand.tensor.dtype]
        return torch.empty((1,) * (operand.tensor.rank or 0), dtype=dtype, device="meta")
    return 1 if isinstance(operand, Sym) else operand


def resolve(args: Any, values: dict[Any, Any]) -> Any:
    """fx arguments with nodes replaced by what they were converted to."""
    if isinstance(args, torch.fx.Node):
        made = values[args]
        return made() if isinstance(made, Late) else made
    if isinstance(args, (list, tuple)):
        return (
            type(args)([resolve(a, values) for a in args])
            if type(args) in (list, tuple)
            else [resolve(a, values) for a in args]
        )
    if isinstance(args, dict):
        return {k: resolve(v, values) for k, v in args.items()}
    if isinstance(args, slice):
        return slice(*(resolve(a, values) for a in (args.start, args.stop, args.step)))
    return args


class Late:
    """A constant that joins the graph when it is first read."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._value: Any = None

    def __call__(self) -> Any:
        if self._value is None:
            self._value = self._make()
        return self._value


def scope_of(node: Any) -> str:
    """The path of the module that made an fx node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    if path.startswith("_empty_nn_module_stack"):
        return ""
    return _COUNTER.sub("", path.removeprefix("L['self']").lstrip("."))


def _place(node: Any) -> str:
    scope = scope_of(node)
    return f"{node.target}{f' in {scope}' if scope else ''}"


def missing_message(node: Any) -> str:
    """What to say of an op without a converter."""
    scope = scope_of(node)
    where = f" (in module {scope})" if scope else ""
    return (
        f"torch's {node.target}{where} has no conversion and no decomposition: "
        "write that module with other ops, or export the model to ONNX and compile the file"
    )


def _attribute(module: Any, target: str) -> Any:
    found = module
    for part in target.split("."):
        found = getattr(found, part)
    return found
