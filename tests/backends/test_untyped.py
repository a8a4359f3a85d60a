"""Lowering around ops that nothing is known of."""

from __future__ import annotations

from tersor.backends.ort.lower import lower
from tersor.frontends.onnx import export_model
from tersor.ir import parse
from tersor.ops import TABLE
from tersor.pipeline import Pipeline
from tersor.pipeline.registry import optimization


def lowered(reader: str) -> list[str]:
    """The ops of what becomes of ``reader``, which reads %o, made by a foreign op."""
    graph = parse(
        f"""
        graph main(%x: f32[2, 4]) -> (y = %y) {{
          @w: f32[4, 3] = dense normal(1)
          %o: unknown = com.foreign.Odd(%x)
          %y: unknown = {reader}
        }}
        """,
        TABLE,
    )
    model = export_model(lower(Pipeline(optimization()).run(graph)))
    return [node.op_type for node in model.graph.node]


def test_a_layer_on_what_nothing_is_known_of_stays() -> None:
    """Found by random graphs."""
    assert lowered("Gemm(%o, @w)") == ["Odd", "Gemm"]


def test_an_attention_on_what_nothing_is_known_of_stays() -> None:
    """Found by fuzzing: its operands' dims were asked for."""
    assert lowered("Attention(%o, %o, %o)") == ["Odd", "Attention"]
