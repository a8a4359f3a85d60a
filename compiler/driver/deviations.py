"""Deviations of the reference runtime from the input model: sums that overflow on some processors, and the
runtime's own fusions, which change the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tersor.analysis.saturation import PRODUCTS, activations_of, overflowing, products
from tersor.backend import Session
from tersor.built import Built
from tersor.errors import TersorError
from tersor.ir import DType, Graph, Node, TensorType
from tersor.pipeline import registry
from tersor.target import Target

Feed = Mapping[str, np.ndarray]
Arrays = Mapping[str, Any]
# Relative to an output's largest magnitude; rounding in fused float32 kernels stays far below.
ROUNDING = 1e-3
SHOWN = 4  # Fusions named in a remark.


def overflow_remarks(graph: Graph, target: Target, runtime: str) -> list[str]:
    """A remark if integer products of the input overflow in the reference runtime on ``target``."""
    warning = overflow(graph, target, "the input's")
    if not warning:
        return []
    if runtime != registry.REFERENCE:
        return [f"{warning}; TVM's sums are exact"]
    signed = sum(_has_signed_activations(node) for node in overflowing(graph))
    exception = f", except for {signed} with signed activations" if signed else ""
    return [
        f"{warning}; the built model has unsigned weights there, which makes them exact{exception}"
    ]


def overflow(graph: Graph, target: Target, whose: str = "its") -> str:
    """A warning about a model whose integer products overflow in the reference runtime on ``target``;
    empty if none do."""
    if not target.saturates_int8 or not (nodes := overflowing(graph)):
        return ""
    return (
        f"on {target.name} ONNX Runtime adds u8 x s8 products in pairs into 16 bits, and {len(nodes)} of "
        f"{whose} {len(products(graph))} integer products can overflow them (first {nodes[0].label}): "
        "its results there are wrong"
    )


def _has_signed_activations(node: Node) -> bool:
    if node.op not in PRODUCTS:  # Those are made unsigned by ONNX Runtime.
        return False
    x = activations_of(node)
    return x is not None and isinstance(x.type, TensorType) and x.type.dtype is DType.I8


def with_exact_sums(graph: Graph, before: Path | Built) -> Path | Built:
    """The input rebuilt with exact sums if they overflow on this processor, else ``before``, the input
    unchanged: the model that a result is judged against."""
    host = Target.host()
    if not host.saturates_int8 or not overflowing(graph):
        return before
    backend = registry.reference()
    return backend.build(graph, backend.Choice.of(host, portable=True))


def fusion_remarks(before: Path | Built, feeds: Sequence[Feed]) -> list[str]:
    """A remark if ONNX Runtime's own optimizer changes the input's outputs on ``feeds`` by more than
    rounding, with the fusions that do: comparing with its defaults would blame the result for that."""
    backend = registry.reference()
    try:
        wanted = _outputs(backend.open_session(before, level="none"), feeds)

        def moved(disabled: Sequence[str]) -> float:
            choice = backend.Choice().replace(disabled_optimizers=tuple(disabled))
            return _difference(wanted, _outputs(backend.open_session(before, choice), feeds))

        whole = moved(())
        if whole <= ROUNDING:
            return []
        guilty = smallest_cause(backend.OPTIMIZERS, lambda names: moved(names) <= ROUNDING)
    except TersorError:
        return []  # The model does not run at one of the levels: nothing to compare.
    names = ", ".join(guilty[:SHOWN]) if guilty else "none of those that can be turned off alone"
    return [
        f"ONNX Runtime's own optimizer changes the input's outputs by {whole:.2g} of the largest "
        f"(by {names}): compare with the unoptimized model"
    ]


def smallest_cause(names: Sequence[str], mends: Callable[[Sequence[str]], bool]) -> list[str]:
    """A small subset of ``names`` for which ``mends`` is true; empty if it is false for all of them. Delta
    debugging: drops halves while the rest still mends, then smaller parts, down to single names."""
    cause, size = list(names), len(names)
    if not mends(cause):
        return []
    while size >= 1:
        for start in reversed(range(0, len(cause), size)):
            rest = cause[:start] + cause[start + size :]
            if rest and mends(rest):
                cause = rest
        size //= 2
    return cause


def _outputs(session: Session, feeds: Sequence[Feed]) -> list[Arrays]:
    return [session.run(feed) for feed in feeds]


def _difference(wanted: Sequence[Arrays], got: Sequence[Arrays]) -> float:
    """The largest difference of a float output, relative to its largest magnitude."""
    worst = 0.0
    for expected, actual in zip(wanted, got, strict=True):
        for name, a in expected.items():
            b = actual[name]
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or a.shape != b.shape:
                continue
            known = np.isfinite(a) & np.isfinite(b)
            if known.any():
                a64, b64 = a[known].astype(np.float64), b[known].astype(np.float64)
                largest = np.abs(a64).max()
                worst = max(worst, float(np.abs(a64 - b64).max() / largest) if largest else 0.0)
    return worst
