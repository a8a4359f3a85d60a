"""What an op is given is held against its schema, whoever emits it: a frontend, a pass or a text."""

from __future__ import annotations

import pytest

from tersor.errors import InvalidGraph
from tersor.ir import parse
from tersor.ops import TABLE, onnx_schema
from tersor.ops.fold import fold_node


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("%y: f32[2] = Relu(%x, %x)", "Relu making %y: 2 operands, Relu takes 1"),
        ("%y: f32[2] = Where(%x)", "Where making %y: 1 operands, Where takes 3"),
        ("%y: f32[2], %z: f32[2] = Relu(%x)", "Relu making %y: 2 results, Relu makes 1"),
        ("%y: f32[2] = Clip(_, %x)", "Clip making %y: Clip needs operand 0, which is left out"),
        ("%y: f32[2] = Add(%x, %i)",
         "Add making %y: operand 1 is i64, operand 0 is f32; Add takes one type for both"),
        ("%y: f32[2] = Softmax(%x) {axis = 0.5}", "Softmax takes INT as its attribute 'axis', not 0.5"),
        ('%y: f32[2] = Loop(%x) {body = ["a"]}', "Loop takes GRAPH as its attribute 'body', not ('a',)"),
        ("%y: i64[2] = ArgMax(%x) {axis = 3}",
         "ArgMax making %y: ArgMax does not take these operands and attributes "
         "(list assignment index out of range)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_node(node: str, message: str) -> None:
    with pytest.raises(InvalidGraph) as error:
        parse(f"graph g(%x: f32[2], %i: i64[2]) -> () {{\n  {node}\n}}", TABLE)
    assert str(error.value) == message


def test_what_the_reference_folds_to_another_shape_is_not_folded() -> None:
    """Found by random graphs: ONNX's implementation leaves out dilations where padding is VALID."""
    graph = parse(
        """
        graph main() -> (y = %y) {
          @x: f32[2, 3, 7, 8] = dense normal(1)
          %y: f32[2, 3, 3, 7] = LpPool(@x) {auto_pad = "VALID", dilations = [2, 1], kernel_shape = [3, 2]}
        }
        """,
        TABLE,
    )
    node = next(graph.nodes)
    (made,) = onnx_schema.evaluate(node, [graph.constants["x"].numpy()]) or [None]
    assert made is not None and made.shape == (2, 3, 5, 7), "it is right by now"
    assert fold_node(node) is None
