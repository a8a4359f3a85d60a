"""Which settings are worth measuring for a graph, by its ops."""

from __future__ import annotations

from tersor.backends.ort.options import Choice
from tersor.ir import Affine, Graph, Value
from tersor.target import Target

# An optimization of ONNX Runtime's that does not always pay.
_SKIP_NORM_FUSION = ("SkipLayerNormFusion",)


def axes(graph: Graph, choice: Choice) -> list[tuple[str, tuple[object, ...]]]:
    """(setting of a Choice, values to try other than that of ``choice``), the most promising first."""
    portable = choice.lower.portable
    ops = {n.op for n in graph.walk()}
    float_linear = any(
        n.op == "tersor.Linear" and not _is_affine(n.inputs[1]) for n in graph.walk()
    )
    settings: list[tuple[str, tuple[object, ...]]] = []
    norms = "tersor.AddLayerNormalization" in ops or "tersor.AddRMSNormalization" in ops
    if norms:
        settings.append(("disabled_optimizers", (_SKIP_NORM_FUSION,)))
    if "Attention" in ops and not portable:
        settings.append(("attention", ("mha",)))
    if float_linear:
        settings.append(("linear", ("gemm",)))
    if norms and not portable:
        settings.append(("skip_norm", ("fused",)))
    settings.append(("spinning", (False,)))
    # Where cores come as pairs of hardware threads, half as many can be faster.
    if (cores := Target.host().cores) > 1:
        settings.append(("threads", (cores // 2,)))
    return settings


def _is_affine(weight: Value | None) -> bool:
    encoding = weight.encoding if weight is not None else None
    return encoding is not None and encoding.layer(Affine) is not None
