"""Decomposes a convolution into a chain of smaller ones (see :mod:`tersor.numerics.tensors`).

For W[m, c, h, w], c channels in and m out:

    tucker        1x1 c -> q,  h x w q -> p,  1x1 p -> m                              (Kim et al. 2016)
    cp            1x1 c -> r,  depthwise h x 1 and 1 x w,  1x1 r -> m             (Lebedev et al. 2015)
    tensor-train  1x1 c -> r1,  h x 1 r1 -> r2,  1 x w r2 -> r3,  1x1 r3 -> m

128 x 128 x 3 x 3 at half of its 147,456 weights: Tucker with p = q = 77, CP with r = 281.  The first step
runs at every position of the input, so strided layers gain less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, cast

import numpy as np

from tersor.analysis.layers import Reader, WeightedLayer
from tersor.analysis.match import operand
from tersor.analysis.selection import LayerPass
from tersor.errors import InvalidOption
from tersor.ir import Graph, Node, Value
from tersor.ir.node import Attribute
from tersor.numerics.lowrank import weight_error
from tersor.numerics.tensors import (
    cp,
    cp_product,
    largest,
    tensor_train,
    train_product,
    train_ranks,
    tucker2,
    tucker2_product,
)
from tersor.pipeline import LOSSY, Context, Skip, replace_node
from tersor.tuning.break_even import Verdict, weigh


@dataclass(frozen=True)
class _Step:
    """One convolution of the chain.

    Attributes:
        weight: [out, in / group, kernel…].
        axes: the spatial axes on which it has the layer's strides, dilations and pads.
    """

    weight: np.ndarray
    axes: tuple[int, ...] = ()
    group: int = 1


@dataclass(frozen=True)
class DecomposeConv(LayerPass):
    """Options:

    method: ``tucker``, ``cp`` or ``tensor-train``.
    ratio: remaining share of each layer's weights, at most.
    must_pay: leave layers alone whose chain is not faster; False: whose chain is not smaller.
    """

    keeps = LOSSY
    budget = frozenset({"ratio"})
    method: Literal["tucker", "cp", "tensor-train"] = "tucker"
    ratio: float = 0.5
    must_pay: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise InvalidOption(
                f"{self.pass_name()}: ratio {self.ratio:g} is not between 0 and 1 (exclusive)"
            )

    def wants(self, reader: Reader) -> bool:
        return reader.node.op == "Conv"

    def against(self, layer: WeightedLayer) -> str:
        if any(node.attrs["group"] != 1 for node in layer.nodes):
            return "it is a grouped convolution"
        return layer.encoded or layer.not_finite or layer.zero

    def run(self, graph: Graph, context: Context) -> None:
        nodes = [node for layer in self.layers(graph, context) for node in layer.nodes]
        for i, node in enumerate(nodes):
            context.progress(i, len(nodes), f"decomposing {node.scope or node.output.name}")
            if not context.may_rewrite():
                return
            with context.trying(node):
                self._decompose(node, context)

    def _decompose(self, node: Node, context: Context) -> None:
        weight = operand(node, 1).numpy().astype(np.float64)
        steps, product = self._steps(weight)
        verdict = self._verdict(node, steps, context)
        if not verdict.pays:
            raise Skip(verdict.numbers, method=self._describe(weight, steps))
        graph, x = node.graph, operand(node, 0)
        assert graph is not None
        with graph.at(node):
            result = _emit(graph, node, x, steps, node.input(2), node.output.name)
        replace_node(node, [result])
        context.rewrote()
        error = weight_error(weight, product)
        where = node.scope or result.name
        context.remark(
            verdict.numbers,
            layer=where,
            method=self._describe(weight, steps),
            error=float(error),
            of="the weight",
        )

    def _describe(self, weight: np.ndarray, steps: Sequence[_Step]) -> str:
        left = sum(step.weight.size for step in steps)
        shape = "x".join(map(str, weight.shape))
        return f"{self.method} of {shape} in {len(steps)} steps, {left / weight.size:.2f} of its weights"

    def _steps(self, weight: np.ndarray) -> tuple[list[_Step], np.ndarray]:
        """The chain, and the weight that it is equivalent to."""
        kernel = weight.shape[2:]
        long = [axis for axis, size in enumerate(kernel) if size > 1]
        if not long and self.method != "tensor-train":
            raise Skip("its kernel is 1x1, which only tensor-train decomposes")
        if self.method == "tucker":
            return self._tucker(weight)
        # Axes with a kernel of 1 may have strides, so one step must cover them.
        first = tuple(axis for axis in range(len(kernel)) if axis not in long[1:])
        walks = [first, *((axis,) for axis in long[1:])] if long else []
        plain = weight.reshape([*weight.shape[:2], *(kernel[axis] for axis in long)])
        if self.method == "cp":
            return self._cp(weight, plain, walks)
        return self._train(weight, plain, walks)

    def _tucker(self, weight: np.ndarray) -> tuple[list[_Step], np.ndarray]:
        m, c, *kernel = weight.shape
        whole = max(m, c)

        def ranks(t: int) -> tuple[int, int]:
            return max(m * t // whole, 1), max(c * t // whole, 1)

        def fits(t: int) -> bool:
            p, q = ranks(t)
            return bool(p * q * prod(kernel) + p * m + q * c <= self.ratio * weight.size)

        core, a, b = tucker2(weight, ranks(self._largest(fits, whole)))
        axes = tuple(range(len(kernel)))
        steps = [_pointwise(b.T, len(kernel)), _Step(core, axes), _pointwise(a, len(kernel))]
        return steps, tucker2_product(core, a, b)

    def _cp(
        self, weight: np.ndarray, plain: np.ndarray, walks: Sequence[tuple[int, ...]]
    ) -> tuple[list[_Step], np.ndarray]:
        spatial = weight.ndim - 2
        rank = self._largest(
            lambda r: r * sum(plain.shape) <= self.ratio * weight.size, weight.size
        )
        factors = cp(plain, rank)
        steps = [_pointwise(factors[1].T, spatial)]
        for factor, axes in zip(factors[2:], walks, strict=True):
            steps.append(_along(factor.T[:, None], axes, weight, group=rank))
        steps.append(_pointwise(factors[0], spatial))
        return steps, cp_product(factors).reshape(weight.shape)

    def _train(
        self, weight: np.ndarray, plain: np.ndarray, walks: Sequence[tuple[int, ...]]
    ) -> tuple[list[_Step], np.ndarray]:
        spatial = weight.ndim - 2
        turned = np.moveaxis(plain, 0, -1)  # c, kernel…, m

        def fits(most: int) -> bool:
            bounds = [1, *train_ranks(turned.shape, most), 1]
            sizes = zip(bounds, turned.shape, bounds[1:], strict=False)
            numbers = sum(r * size * s for r, size, s in sizes)
            return bool(numbers <= self.ratio * weight.size)

        most = self._largest(fits, max(train_ranks(turned.shape)))
        cores = tensor_train(turned, train_ranks(turned.shape, most))
        enter = _pointwise(cores[0][0].T, spatial)
        if not walks:
            enter = _Step(enter.weight, tuple(range(spatial)))
        steps = [enter]
        for core, axes in zip(cores[1:-1], walks, strict=True):
            steps.append(_along(core.transpose(2, 0, 1), axes, weight))
        steps.append(_pointwise(cores[-1][:, :, 0].T, spatial))
        return steps, np.moveaxis(train_product(cores), -1, 0).reshape(weight.shape)

    def _largest(self, fits: Callable[[int], bool], most: int) -> int:
        """The largest rank that fits, at most ``most``."""
        rank = largest(fits, most)
        if not rank:
            raise Skip(f"even rank 1 has more than {self.ratio:g} of its weights")
        return rank

    def _verdict(self, node: Node, steps: Sequence[_Step], context: Context) -> Verdict:
        reads, weight = operand(node, 0), operand(node, 1)

        def dense(graph: Graph, x: Value) -> Value:
            return graph.emit("Conv", [x, graph.constant(weight.numpy(), "w")], node.attrs)

        def chain(graph: Graph, x: Value) -> Value:
            return _emit(graph, node, x, steps, None)

        latency = context.latency if self.must_pay else None
        counts = (float(weight.numpy().size), _multiplications(node, steps))
        return weigh(latency, reads, dense, chain, counts)


def _pointwise(matrix: np.ndarray, spatial: int) -> _Step:
    """A 1x1 step of the matrix [out, in]."""
    return _Step(matrix.reshape([*matrix.shape, *[1] * spatial]))


def _along(core: np.ndarray, axes: tuple[int, ...], weight: np.ndarray, group: int = 1) -> _Step:
    """A step of ``core`` [out, in / group, size] along the one of ``axes`` where ``weight`` is not 1."""
    kernel = [weight.shape[2 + a] if a in axes else 1 for a in range(weight.ndim - 2)]
    return _Step(core.reshape([*core.shape[:2], *kernel]), axes, group)


def _multiplications(node: Node, steps: Sequence[_Step]) -> float:
    """Of the chain, per position of its result. Before a strided axis there are as many times more
    positions."""
    strides = cast(
        "tuple[int, ...]", node.attrs.get("strides") or (1,) * (steps[0].weight.ndim - 2)
    )
    positions, total = float(prod(strides)), 0.0
    for step in steps:
        for axis in step.axes:
            positions /= strides[axis]
        total += step.weight.size * positions
    return total


def _emit(
    graph: Graph, node: Node, x: Value, steps: Sequence[_Step], bias: Value | None, name: str = ""
) -> Value:
    """The chain on ``x`` in place of ``node``, in its dtype; the last step adds the bias."""
    weight = operand(node, 1)
    for step in steps:
        last = step is steps[-1]
        kernel = graph.constant(step.weight.astype(weight.tensor.dtype.numpy), weight.name)
        operands = [x, kernel] if bias is None or not last else [x, kernel, bias]
        x = graph.emit("Conv", operands, _attributes(node, step), name=name if last else "")
    return x


def _attributes(node: Node, step: _Step) -> dict[str, Attribute]:
    """The attributes of ``node`` on the step's axes; the defaults on all others."""
    spatial = step.weight.ndim - 2
    attrs: dict[str, Attribute] = {**node.attrs, "group": step.group}
    attrs["kernel_shape"] = step.weight.shape[2:]
    for name, default in (("strides", 1), ("dilations", 1), ("pads", 0)):
        given = node.attrs.get(name)
        if isinstance(given, tuple) and given:
            attrs[name] = tuple(
                int(v) if i % spatial in step.axes else default  # type: ignore[call-overload]
                for i, v in enumerate(given)
            )
    return attrs
