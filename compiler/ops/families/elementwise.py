"""Elementwise ops: unary, binary with broadcasting, selection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tersor.ir import DType, Node, TensorType, ValueType
from tersor.ir.bounds import is_at_least, larger, smaller
from tersor.ir.dims import KnownDim, divide, floordiv
from tersor.ops import onnx_schema
from tersor.ops.contents import contents_of
from tersor.ops.families import _straight as straight
from tersor.ops.families._samples import floats
from tersor.ops.families._symbolic import broadcast_dims, small
from tersor.ops.families._ties import broadcast, dims
from tersor.ops.opdef import Cost, Member, OpDef, Sample, Tie, Trait, with_traits


def elementwise_cost(node: Node) -> Cost:
    """One operation for each element of the result."""
    return Cost(0, node.output.tensor.numel if isinstance(node.output.type, TensorType) else None)


def broadcast_infer(
    dtype: DType | None = None, source: int = 0
) -> Callable[[Node], list[ValueType]]:
    """Inference for broadcast operands; the element type is ``dtype`` or operand ``source``'s."""

    def infer(node: Node) -> list[ValueType]:
        operands = [v for v in node.inputs if v is not None]
        element = dtype or operands[source].tensor.dtype
        out: tuple[Any, ...] = ()
        for value in operands:
            if value.tensor.dims is None:
                return [TensorType(element, None)]
            out = broadcast_dims(out, value.tensor.dims)
        _check(node, out)
        if (
            node.op != "Where"
            and len({v.tensor.dtype for v in operands}) > 1
            and node.op not in _MIXED
        ):
            return onnx_schema.infer(node)
        return [TensorType(element, out)]

    return infer


_MIXED = {"Pow", "BitShift"}


def _check(node: Node, out: tuple[Any, ...]) -> None:
    """Raises InvalidGraph if static dims cannot be broadcast."""
    for value in node.inputs:
        shape = dims(value)
        for have, want in zip(reversed(shape), reversed(out), strict=False):
            if isinstance(have, int) and isinstance(want, int) and have not in (1, want):
                from tersor.errors import InvalidGraph

                raise InvalidGraph(
                    f"{node.label}: {', '.join(str(v.type) for v in node.inputs if v)} do not broadcast"
                )


def _same_infer(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    return [x.type] + [TensorType(DType.BOOL, x.tensor.dims)] * (len(node.outputs) - 1)


# -- contents --------------------------------------------------------------------------------------


def _lift(function: Callable[..., Any]) -> Callable[[Node], list[np.ndarray | None]]:
    """Contents by ``function`` on the operands' broadcast elements; unknown ones stay unknown."""

    def contents(node: Node) -> list[np.ndarray | None]:
        operands = [contents_of(v) for v in node.inputs]
        if any(o is None for o in operands):
            return [None]
        known = [o for o in operands if o is not None]
        shape = np.broadcast_shapes(*(o.shape for o in known))
        if not small(shape):
            return [None]
        out = np.empty(shape, object)
        flat = [np.broadcast_to(o, shape).reshape(-1) for o in known]
        out.reshape(-1)[:] = (
            [None if None in items else function(*items) for items in zip(*flat, strict=True)]
            if out.size
            else []
        )
        return [out]

    return contents


def _compare(op: Callable[[Any, Any], bool]) -> Callable[[Any, Any], int | None]:
    """1 or 0 for numbers, and for symbols whose difference is a number or has a certain sign (a size
    is never -1); else unknown."""

    def decide(a: KnownDim, b: KnownDim) -> int | None:
        span = a - b
        if isinstance(span, int):
            return int(op(span, 0))
        if is_at_least(a, b + 1):
            return int(op(1, 0))
        return int(op(-1, 0)) if is_at_least(b, a + 1) else None

    return decide


def _divide(a: KnownDim, b: KnownDim) -> KnownDim | None:
    """Truncating division; symbols are sizes, which are not negative."""
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return int(a / b) if abs(a) < 2**53 else None
    if (exact := divide(a, b)) is not None:
        return exact
    # Rounding towards zero is rounding down if neither is negative.
    return None if is_at_least(0, a) or is_at_least(0, b) else floordiv(a, b)


def _where_contents(node: Node) -> list[np.ndarray | None]:
    return _lift(lambda c, a, b: (a if c else b) if isinstance(c, int) else a if a == b else None)(
        node
    )


def _identity_contents(node: Node) -> list[np.ndarray | None]:
    return [contents_of(node.inputs[0])] + [None] * (len(node.outputs) - 1)


# -- torch -----------------------------------------------------------------------------------------


def _torch(name: str) -> Callable[..., Any]:
    """torch's function of that name, looked up when it is called."""

    def call(*operands: Any, **attrs: Any) -> Any:
        import torch

        return getattr(torch, name)(*operands, **attrs)

    return call


def _nn(name: str) -> Callable[..., Any]:
    def call(*operands: Any, **attrs: Any) -> Any:
        import torch.nn.functional as F

        return getattr(F, name)(*operands, **attrs)

    return call


def _fold(name: str) -> Callable[..., Any]:
    """A binary function folded over any number of operands."""

    def call(*operands: Any) -> Any:
        import torch

        result = operands[0]
        for operand in operands[1:]:
            result = getattr(torch, name)(result, operand)
        return result

    return call


def _div(a: Any, b: Any) -> Any:
    import torch

    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod_needs(node: Node) -> int:
    """Before opset 28, floats require ``fmod``."""
    a = node.inputs[0]
    floats = a is not None and isinstance(a.type, TensorType) and a.type.dtype.is_float
    return 28 if floats and not node.attrs["fmod"] else 0


def _mod(a: Any, b: Any, *, fmod: int) -> Any:
    import torch

    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def _pow(a: Any, b: Any) -> Any:
    return a.pow(b).to(a.dtype)


def _clip(x: Any, low: Any = None, high: Any = None) -> Any:
    if low is not None:
        x = x.maximum(low)
    return x if high is None else x.minimum(high)


def _isinf(x: Any, *, detect_negative: int, detect_positive: int) -> Any:
    inf = float("inf")
    return ((x == inf) & bool(detect_positive)) | ((x == -inf) & bool(detect_negative))


def _dropout(x: Any, ratio: Any = None, training: Any = None, *, seed: int = 0) -> Any:
    import torch

    return x, torch.ones_like(x, dtype=torch.bool)


def _dropout_ties(node: Node) -> list[Tie]:
    """The mask is shaped like the operand."""
    masks = range(1, len(node.outputs))
    return [
        Tie(t.size, (*t.members, *(Member("out", i, t.members[0].axis) for i in masks)))
        for t in broadcast(node, [0])
    ]


def _selu(x: Any, *, alpha: float, gamma: float) -> Any:
    return gamma * x.where(x > 0, alpha * (x.exp() - 1))


# -- samples ---------------------------------------------------------------------------------------


def _positive(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (np.abs(rng.standard_normal(shape)) + 0.1).astype(np.float32)


def _unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(-0.9, 0.9, shape).astype(np.float32)


def _holed(x: np.ndarray, hole: float) -> np.ndarray:
    """``x`` with some elements of either sign replaced by ``hole``."""
    return np.where(np.abs(x) > 1, np.copysign(hole, x), x).astype(x.dtype)


def _bools(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2, shape).astype(bool)


def _one(make: Callable[..., np.ndarray], *attrs: dict[str, Any]) -> Any:
    return lambda rng: [Sample([make(rng, 2, 3, 4)], a) for a in (attrs or ({},))]


def _pairs(make: Callable[..., np.ndarray], integers: bool = True) -> Any:
    def samples(rng: np.random.Generator) -> list[Sample]:
        samples = [
            Sample([make(rng, 2, 3, 4), make(rng, 3, 1)]),
            Sample([make(rng, 4), make(rng, 2, 1, 4)]),
            Sample([make(rng, 2, 3), make(rng)]),
        ]
        if integers:
            a, b = rng.integers(-9, 9, (3, 4)), rng.integers(1, 9, 4)
            samples.append(Sample([a.astype(np.int64), b.astype(np.int64)]))
        return samples

    return samples


def _unary(
    op: str, since: int, torch: Callable[..., Any], make: Any = floats, *attrs: dict[str, Any]
) -> OpDef:
    """A row of an op on one operand that preserves its type."""
    return OpDef(op, since=since, infer=_same_infer, torch=torch, cost=elementwise_cost,
                 ties=broadcast, samples=_one(make, *attrs))  # fmt: skip


def _binary(op: str, since: int, torch: Callable[..., Any], **more: Any) -> OpDef:
    """A row of an op on broadcast operands of one type."""
    row: dict[str, Any] = {"infer": broadcast_infer(), "samples": _pairs(floats)}
    return OpDef(
        op, since=since, torch=torch, cost=elementwise_cost, ties=broadcast, **(row | more)
    )


def _compares(op: str, since: int, torch: str, decide: Callable[[Any, Any], bool]) -> OpDef:
    return _binary(op, since, _torch(torch), infer=broadcast_infer(DType.BOOL), traits=_DISCRETE,
                   contents=_lift(_compare(decide)), commutative=op == "Equal")  # fmt: skip


def _logical(op: str, torch: str, decide: Callable[[int, int], int | None]) -> OpDef:
    return _binary(op, 7, _torch(torch), samples=_pairs(_bools, integers=False),
                   contents=_lift(decide), commutative=True)  # fmt: skip


def _and(a: Any, b: Any) -> int | None:
    if a == 0 or b == 0:
        return 0
    return 1 if a == b == 1 else None


def _where_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample([_bools(rng, 2, 1, 4), floats(rng, 3, 1), floats(rng, 2, 3, 4)]),
        Sample([_bools(rng, 3), np.array(0, np.float32), np.array(-np.inf, np.float32)]),
    ]


def _clip_samples(rng: np.random.Generator) -> list[Sample]:
    low, high = np.array(-0.5, np.float32), np.array(0.5, np.float32)
    return [
        Sample([floats(rng, 3, 4), low, high]),
        Sample([floats(rng, 3, 4), None, high]),
        Sample([floats(rng, 3), low]),
    ]


def _bool_like(node: Node) -> list[ValueType]:
    x = node.inputs[0]
    assert x is not None
    return [TensorType(DType.BOOL, x.tensor.dims)]


def _leaky(x: Any, *, alpha: float) -> Any:
    return _nn("leaky_relu")(x, alpha)


_DISCRETE: frozenset[Trait] = frozenset({"discrete"})
_PLAIN = {
    "Sin": (7, "sin"), "Cos": (7, "cos"), "Tan": (7, "tan"), "Atan": (7, "atan"), "Sinh": (9, "sinh"),
    "Cosh": (9, "cosh"), "Asinh": (9, "asinh"), "Erf": (9, "erf"), "Exp": (6, "exp"),
    "Neg": (6, "neg"), "Abs": (6, "abs"), "Tanh": (6, "tanh"), "Sigmoid": (6, "sigmoid"),
    "Relu": (6, "relu"),
}  # fmt: skip

ROWS = with_traits("elementwise", [
    *(_unary(op, since, _torch(name)) for op, (since, name) in _PLAIN.items()
      if op not in ("Neg", "Sigmoid")),
    replace(_unary("Sigmoid", 6, _torch("sigmoid")), traits=frozenset({"decision"})),
    *(replace(_unary(op, since, _torch(op.lower())), traits=frozenset({"rounding"}),
              straight_through=straight.itself)
      for op, since in (("Floor", 6), ("Ceil", 6), ("Round", 11))),
    replace(_unary("Sign", 9, _torch("sign")), straight_through=straight.sign),
    OpDef("Neg", since=6, infer=_same_infer, torch=_torch("neg"), cost=elementwise_cost,
          ties=broadcast, contents=_lift(lambda a: -a), samples=_one(floats)),
    _unary("Log", 6, _torch("log"), _positive),
    _unary("Sqrt", 6, _torch("sqrt"), _positive),
    _unary("Reciprocal", 6, _torch("reciprocal"), _positive),
    _unary("Asin", 7, _torch("asin"), _unit),
    _unary("Acos", 7, _torch("acos"), _unit),
    _unary("Atanh", 9, _torch("atanh"), _unit),
    _unary("Acosh", 9, _torch("acosh"),
           lambda rng, *s: _positive(rng, *s) + 1),
    _unary("LeakyRelu", 6, _leaky, floats, {"alpha": 0.1}),
    _unary("Elu", 6, lambda x, *, alpha: _nn("elu")(x, alpha), floats, {"alpha": 0.5}),
    _unary("Celu", 12, lambda x, *, alpha: _nn("celu")(x, alpha), floats, {"alpha": 0.5}),
    _unary("Selu", 6, _selu),
    _unary("Gelu", 20, lambda x, *, approximate: _nn("gelu")(x, approximate=approximate), floats,
           {"approximate": "none"}, {"approximate": "tanh"}),
    _unary("HardSigmoid", 6, lambda x, *, alpha, beta: (alpha * x + beta).clamp(0, 1)),
    _unary("HardSwish", 14, _nn("hardswish")),
    _unary("Softplus", 1, _nn("softplus")),
    _unary("Softsign", 1, _nn("softsign")),
    _unary("Mish", 18, _nn("mish")),
    _unary("Swish", 24, lambda x, *, alpha: x * (alpha * x).sigmoid(), floats, {"alpha": 1.0},
           {"alpha": 1.702}),
    _unary("ThresholdedRelu", 10, lambda x, *, alpha: x * (x > alpha), floats, {"alpha": 0.3}),
    OpDef("Identity", traits=frozenset({"view", "movement"}),
          since=1, infer=lambda node: [node.inputs[0].type],  # type: ignore[union-attr]
          contents=_identity_contents, torch=lambda x: x, cost=lambda node: Cost(0, 0),
          ties=broadcast, samples=_one(floats)),
    OpDef("Dropout", since=13, infer=_same_infer, torch=_dropout, cost=lambda node: Cost(0, 0),
          ties=_dropout_ties,
          samples=lambda rng: [Sample([floats(rng, 2, 3)], outputs=n) for n in (1, 2)]),
    OpDef("Not", since=1, infer=_same_infer, contents=_lift(lambda a: 1 - a), torch=_torch("logical_not"),
          cost=elementwise_cost, ties=broadcast, samples=_one(_bools)),
    OpDef("IsNaN", traits=_DISCRETE, since=9, infer=_bool_like, torch=_torch("isnan"), cost=elementwise_cost,
          ties=broadcast, samples=_one(lambda rng, *s: _holed(floats(rng, *s), np.nan))),
    OpDef("IsInf", traits=_DISCRETE, since=10, infer=_bool_like, torch=_isinf, cost=elementwise_cost,
          ties=broadcast,
          samples=_one(lambda rng, *s: _holed(floats(rng, *s), np.inf), {}, {"detect_positive": 0})),
    OpDef("Clip", since=12, infer=_same_infer, torch=_clip, cost=elementwise_cost,
          ties=lambda node: broadcast(node, [0]), samples=_clip_samples),
    OpDef("Where", since=9, infer=broadcast_infer(source=1), contents=_where_contents,
          torch=_torch("where"), cost=elementwise_cost, ties=broadcast, samples=_where_samples),
    _binary("Add", 7, _torch("add"), contents=_lift(lambda a, b: a + b), commutative=True,
            traits=frozenset({"sum"})),
    _binary("Sub", 7, _torch("sub"), contents=_lift(lambda a, b: a - b)),
    _binary("Mul", 7, _torch("mul"), contents=_lift(lambda a, b: a * b), commutative=True),
    _binary("Div", 7, _div, contents=_lift(_divide)),
    _binary("Mod", 10, _mod, needs=_mod_needs, samples=lambda rng: [
        Sample([rng.integers(-9, 9, (3, 4)), rng.integers(1, 5, 4)]),
        Sample([floats(rng, 3), _positive(rng, 3)], {"fmod": 1})]),
    _binary("Pow", 12, _pow, samples=lambda rng: [
        Sample([_positive(rng, 3, 4), floats(rng, 4)]), Sample([floats(rng, 3), np.array(2, np.float32)]),
        Sample([floats(rng, 3), np.array(3, np.int64)])]),
    _binary("PRelu", 9, lambda x, slope: x.where(x >= 0, x * slope)),
    _binary("Max", 12, _fold("maximum"), contents=_lift(larger), commutative=True),
    _binary("Min", 12, _fold("minimum"), contents=_lift(smaller), commutative=True),
    _binary("Sum", 8, _fold("add"), samples=_pairs(floats, integers=False)),
    _binary("Mean", 8, lambda *xs: sum(xs) / len(xs), samples=_pairs(floats, integers=False)),
    _logical("And", "logical_and", _and),
    _logical("Or", "logical_or", lambda a, b: 1 if 1 in (a, b) else 0),
    _logical("Xor", "logical_xor", lambda a, b: a ^ b),
    _compares("Equal", 11, "eq", lambda a, b: a == b),
    _compares("Less", 9, "lt", lambda a, b: a < b),
    _compares("LessOrEqual", 12, "le", lambda a, b: a <= b),
    _compares("Greater", 9, "gt", lambda a, b: a > b),
    _compares("GreaterOrEqual", 12, "ge", lambda a, b: a >= b),
])  # fmt: skip
