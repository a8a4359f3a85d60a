"""Which settings are worth measuring for a graph, given what is in it."""

from __future__ import annotations

from tersor.backends.ort.options import Choice
from tersor.ir import Affine, Graph, Value
from tersor.target import Target

# What ONNX Runtime does by itself and what does not always pay.
_SKIP_NORM_FUSION = ("SkipLayerNormFusion",)


def axes(graph: Graph, choice: Choice) -> list[tuple[str, tuple[object, ...]]]:
    """(setting of a Choice, its values to try besides that of ``choice``), the most promising first."""
    portable = choice.lower.portable
    ops = {n.op for n in graph.walk()}
    float_linear = any(
        n.op == "tersor.Linear" and not _is_affine(n.inputs[1]) for n in graph.walk()
    )
    found: list[tuple[str, tuple[object, ...]]] = []
    norms = "tersor.AddLayerNormalization" in ops or "tersor.AddRMSNormalization" in ops
    if norms:
        found.append(("disabled_optimizers", (_SKIP_NORM_FUSION,)))
    if "Attention" in ops and not portable:
        found.append(("attention", ("mha",)))
    if float_linear:
        found.append(("linear", ("gemm",)))
    if norms and not portable:
        found.append(("skip_norm", ("fused",)))
    found.append(("spinning", (False,)))
    # Where cores come as pairs of hardware threads, half as many can be faster.
    if (cores := Target.host().cores) > 1:
        found.append(("threads", (cores // 2,)))
    return found


def _is_affine(weight: Value | None) -> bool:
    encoding = weight.encoding if weight is not None else None
    return encoding is not None and encoding.layer(Affine) is not None
