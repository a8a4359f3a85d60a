"""What the reference runtime makes of the input that the model does not say: sums that overflow on some
processors, and fusions of its own that move the numbers."""

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
# Of the largest magnitude of an output: fused kernels that round otherwise stay far below in float32.
ROUNDING = 1e-3
SHOWN = 4  # Fusions that a remark names.


def overflow_remarks(graph: Graph, target: Target, runtime: str) -> list[str]:
    """A line where integer products of the input overflow in the reference runtime on ``target``."""
    told, found = overflow(graph, target, "the input's"), overflowing(graph)
    if not told:
        return []
    what = "; TVM's sums are exact"
    if runtime == registry.REFERENCE:
        signed = sum(_has_signed_activations(node) for node in found)
        what = "; what is built has unsigned weights there, with which they are exact"
        if signed:
            what += f", but for {signed} whose activations have a sign"
    return [told + what]


def overflow(graph: Graph, target: Target, whose: str = "its") -> str:
    """What is to be said of a model whose integer products overflow in the reference runtime on
    ``target``; empty where they do not."""
    if not target.saturates_int8 or not (found := overflowing(graph)):
        return ""
    return (
        f"on {target.name} ONNX Runtime adds u8 x s8 products in pairs into 16 bits, and {len(found)} of "
        f"{whose} {len(products(graph))} integer products can overflow them (first {found[0].label}): "
        "what it gives there is not what the model says"
    )


def _has_signed_activations(node: Node) -> bool:
    if node.op not in PRODUCTS:  # Those are made unsigned by ONNX Runtime.
        return False
    x = activations_of(node)
    return x is not None and isinstance(x.type, TensorType) and x.type.dtype is DType.I8


def compared_with(graph: Graph, before: Path | Built) -> Path | Built:
    """The input in a form whose sums are exact, where this processor's usual ones overflow: what a result
    is judged against. ``before``: the input as it is."""
    host = Target.host()
    if not host.saturates_int8 or not overflowing(graph):
        return before
    backend = registry.reference()
    return backend.build(graph, backend.Choice.of(host, portable=True))


def fusion_remarks(before: Path | Built, feeds: Sequence[Feed]) -> list[str]:
    """A line where ONNX Runtime's own optimizer moves the input's outputs by more than rounding on
    ``feeds``, with the fusions that do; a comparison with its defaults would lay that on the result."""
    backend = registry.reference()
    try:
        wanted = _outputs(backend.open_session(before, level="none"), feeds)

        def moved(disabled: Sequence[str]) -> float:
            choice = backend.Choice().but(disabled_optimizers=tuple(disabled))
            return _difference(wanted, _outputs(backend.open_session(before, choice), feeds))

        whole = moved(())
        if whole <= ROUNDING:
            return []
        guilty = smallest_cause(backend.OPTIMIZERS, lambda names: moved(names) <= ROUNDING)
    except TersorError:
        return []  # A model that does not run at one of the levels shows no difference between them.
    told = ", ".join(guilty[:SHOWN]) if guilty else "none of those that can be turned off alone"
    return [
        f"ONNX Runtime's own optimizer moves the input's outputs by {whole:.2g} of the largest, against "
        f"the model as it is written (by {told}): compare with the model unoptimized"
    ]


def smallest_cause(names: Sequence[str], mends: Callable[[Sequence[str]], bool]) -> list[str]:
    """A small part of ``names`` that ``mends`` says yes to; none where not even all of them do. Halves
    are left out as long as the rest still mends, then smaller parts, down to single names."""
    held, size = list(names), len(names)
    if not mends(held):
        return []
    while size >= 1:
        for start in reversed(range(0, len(held), size)):
            rest = held[:start] + held[start + size :]
            if rest and mends(rest):
                held = rest
        size //= 2
    return held


def _outputs(session: Session, feeds: Sequence[Feed]) -> list[Arrays]:
    return [session.run(feed) for feed in feeds]


def _difference(wanted: Sequence[Arrays], got: Sequence[Arrays]) -> float:
    """The largest difference of a float output, relative to its largest magnitude."""
    worst = 0.0
    for expected, found in zip(wanted, got, strict=True):
        for name, a in expected.items():
            b = found[name]
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or a.shape != b.shape:
                continue
            known = np.isfinite(a) & np.isfinite(b)
            if known.any():
                a64, b64 = a[known].astype(np.float64), b[known].astype(np.float64)
                largest = np.abs(a64).max()
                worst = max(worst, float(np.abs(a64 - b64).max() / largest) if largest else 0.0)
    return worst
