"""Converts torch's fx graph to the IR: the context of all converters."""

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

# Paths of modules that run several times have a counter: ``layers.0@1``.
_COUNTER = re.compile(r"@\d+\b")


class Lowering:
    """A graph under construction.

    Attributes:
        graph: the graph.
        sizes: symbolic sizes.
        node: the fx node that is being converted.
        result, results: its traced result types (tensors only).
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sizes = Sizes(graph)
        self.node: Any = None
        self.result: TensorType = TensorType(DType.F32, None)
        self.results: list[TensorType] = []
        self.scope = ""
        self._small: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._transposed: dict[Value, Value] = {}  # Transposed constant by original.

    # -- walking -----------------------------------------------------------------------------------

    def run(self, module: Any, values: dict[Any, Any], folded: Folded | None = None) -> Any:
        """Converts the graph of ``module``, whose placeholders are in ``values``; returns its converted
        results. ``folded``: nodes that are constants."""
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            if folded is not None and node in folded:
                values[node] = Deferred(partial(self._folded, folded, node))
                continue
            if node.op == "get_attr":
                values[node] = _attribute(module, node.target)
            elif node.op == "output":
                return resolve(node.args[0], values)
            else:
                values[node] = self._convert(node, values)
        return ()

    def _folded(self, folded: Folded, node: Any) -> Any:
        result = folded.value(node)
        several = isinstance(result, (tuple, list))
        constants = [
            self.constant(array_of(tensor, node.name), name=node.name)
            for tensor in (result if several else [result])
        ]
        return tuple(constants) if several else constants[0]

    def _convert(self, node: Any, values: dict[Any, Any]) -> Any:
        if is_assertion(node):
            return None
        convert = find(node.target)
        if convert is None:
            raise Unsupported(missing_message(node))
        self.node, self.scope = node, scope_of(node)
        self.results = self._types(node)
        self.result = self.results[0] if self.results else TensorType(DType.F32, None)
        args, kwargs = resolve(node.args, values), resolve(node.kwargs, values)
        try:
            results = convert(self, *args, **kwargs)
        except Unsupported as error:
            raise Unsupported(f"{node_label(node)}: {error}") from None
        except InvalidGraph as error:  # The message has the emitted node's label, with the scope.
            raise InvalidGraph(f"{node.target}: {error}") from None
        except TypeError as error:
            raise Unsupported(f"{node_label(node)}: unsupported arguments ({error})") from error
        self._refine_types(node, results)
        return results

    def _types(self, node: Any) -> list[TensorType]:
        val = node.meta.get("val")
        vals = val if isinstance(val, (list, tuple)) else [val]
        return [self.type_of(v) for v in vals if isinstance(v, torch.Tensor)]

    def type_of(self, tensor: Any) -> TensorType:
        return TensorType(dtype_of(tensor.dtype), self.sizes.dims(tensor.shape))

    def _refine_types(self, node: Any, results: Any) -> None:
        """Gives results their traced types, which are more precise: they include the tracer's guards.

        Raises:
            InvalidGraph: one contradicts the inferred type, so a converter is wrong.
        """
        values = [results] if isinstance(results, Value) else results
        if not isinstance(values, (list, tuple)) or len(values) != len(self.results):
            return
        for value, traced in zip(values, self.results, strict=True):
            if not isinstance(value, Value):
                continue
            if not isinstance(value.type, UnknownType) and not value.tensor.accepts(traced):
                raise InvalidGraph(
                    f"{node_label(node)}: returns {traced}, but is converted to {value!r}"
                )
            if value.producer is not None and (value.contents is None or value.tensor.dims is None):
                value.type = traced
            for axis, dim in enumerate(traced.dims or ()):
                self.sizes.add_source(value, axis, dim)

    def inline(self, module: Any, operands: Sequence[Any]) -> Any:
        """Converts the body of a higher-order op in place."""
        inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
        outer = self.node, self.scope, self.results
        results = self.run(module, dict(zip(inputs, operands, strict=True)))
        self.node, self.scope, self.results = outer
        return results

    # -- emitting ----------------------------------------------------------------------------------

    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """The result of a new node, in the scope of the current fx node."""
        kept = {k: v for k, v in attrs.items() if v is not None}
        return self.graph.emit(op, _trimmed(inputs), kept, scope=self.scope)

    def emit_many(
        self, op: str, count: int, *inputs: Value | None, **attrs: Any
    ) -> tuple[Value, ...]:
        """The ``count`` results of a new node."""
        kept = {k: v for k, v in attrs.items() if v is not None}
        node = self.graph.emit_node(
            op, _trimmed(inputs), kept, names=[""] * count, scope=self.scope
        )
        return node.outputs

    # -- operands ----------------------------------------------------------------------------------

    def constant(self, data: Any, dtype: DType | None = None, name: str = "const") -> Value:
        """A constant; equal small ones are shared."""
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
        """A vector of sizes; symbolic ones are computed from shapes of inputs."""
        return self.sizes.shape(dims)

    def value(self, operand: Operand, dtype: DType | None = None) -> Value:
        """An operand as a value, cast to ``dtype`` if given. A number becomes a constant, by default of
        torch's dtype for its kind."""
        if isinstance(operand, Value):
            return operand if dtype is None else self.cast(operand, dtype)
        if isinstance(operand, Sym):
            return self.value(self.sizes.scalar(operand), dtype)
        if dtype is None:
            dtype = dtype_of(torch.result_type(torch.empty((), dtype=torch.bool), operand))
        return self.constant(operand, dtype)

    def cast(self, value: Value, dtype: DType) -> Value:
        """``value`` cast to ``dtype``, if it has another one."""
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
        """Operands as values of one dtype, by default torch's promotion of theirs."""
        common = dtype or self.promoted(*operands)
        return [self.value(o, common) for o in operands]

    def promoted(self, *operands: Operand) -> DType:
        """The dtype that torch promotes the operands to. Tensors of higher rank take precedence over
        tensors of rank 0, and these over numbers, of the same category
        (https://docs.pytorch.org/docs/stable/tensor_attributes.html, type promotion)."""
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
        """A constant matrix [n, k] as a constant [k, n]; one for each ``weight``."""
        if weight not in self._transposed:
            array = np.ascontiguousarray(weight.numpy().T)
            self._transposed[weight] = self.graph.constant(array, weight.name)
        return self._transposed[weight]

    # -- cleanup -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Erases unread constants. A weight that is read both directly and transposed (an embedding tied
        to the output layer) becomes one constant again, with a Transpose in the graph."""
        for original, transposed in self._transposed.items():
            if original.uses and transposed.uses:
                first = transposed.users[0]
                for user in transposed.users:
                    first = user if _is_before(user, first) else first
                with self.graph.at(first):
                    result = self.graph.emit("Transpose", [original], {"perm": (1, 0)}, scope="")
                self.graph.replace(transposed, result)
        for constant in list(self.graph.constants.values()):
            if not constant.uses:
                self.graph.erase_constant(constant)


def _is_before(node: Any, other: Any) -> bool:
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
    """fx arguments with nodes replaced by their converted results."""
    if isinstance(args, torch.fx.Node):
        value = values[args]
        return value() if isinstance(value, Deferred) else value
    if isinstance(args, (list, tuple)):
        items = [resolve(a, values) for a in args]
        return tuple(items) if type(args) is tuple else items
    if isinstance(args, dict):
        return {k: resolve(v, values) for k, v in args.items()}
    if isinstance(args, slice):
        return slice(*(resolve(a, values) for a in (args.start, args.stop, args.step)))
    return args


class Deferred:
    """A constant that is added to the graph when it is first read."""

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create
        self._value: Any = None

    def __call__(self) -> Any:
        if self._value is None:
            self._value = self._create()
        return self._value


def is_assertion(node: Any) -> bool:
    """Whether an fx node is an assertion by the tracer, which has no result."""
    return str(node.name).startswith("_") and "assert" in str(node.name)


def scope_of(node: Any) -> str:
    """The path of the module that an fx node comes from."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    if path.startswith("_empty_nn_module_stack"):
        return ""
    return _COUNTER.sub("", path.removeprefix("L['self']").lstrip("."))


def node_label(node: Any) -> str:
    """An fx node's name in messages, in the form of :attr:`tersor.ir.Node.label`."""
    scope = scope_of(node)
    return f"{node.target} %{node.name}{f' ({scope})' if scope else ''}"


def missing_message(node: Any) -> str:
    """The error for an op without a converter."""
    return (
        f"{node_label(node)}: no conversion and no decomposition for this op of torch: use other ops, or "
        "export the model to ONNX and compile the file"
    )


def _attribute(module: Any, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module
