"""What an op is given is held against its schema, whoever emits it: a frontend, a pass or a text."""

from __future__ import annotations

import pytest

from tersor.errors import InvalidGraph
from tersor.ir import parse
from tersor.ops import TABLE


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("%y: f32[2] = Relu(%x, %x)", "Relu %y: 2 operands, Relu takes 1"),
        ("%y: f32[2] = Where(%x)", "Where %y: 1 operands, Where takes 3"),
        ("%y: f32[2], %z: f32[2] = Relu(%x)", "Relu %y: 2 results, Relu has 1"),
        ("%y: f32[2] = Clip(_, %x)", "Clip %y: Clip needs operand 0, which is left out"),
        ("%y: f32[2] = Add(%x, %i)",
         "Add %y: operand 1 is i64, operand 0 is f32; Add takes one type for both"),
        ("%y: f32[2] = Softmax(%x) {axis = 0.5}", "Softmax takes INT as its attribute 'axis', not 0.5"),
        ('%y: f32[2] = Loop(%x) {body = ["a"]}', "Loop takes GRAPH as its attribute 'body', not ('a',)"),
        ("%y: i64[2] = ArgMax(%x) {axis = 3}",
         "ArgMax %y: ArgMax does not take these operands and attributes "
         "(list assignment index out of range)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_node(node: str, message: str) -> None:
    with pytest.raises(InvalidGraph) as error:
        parse(f"graph g(%x: f32[2], %i: i64[2]) -> () {{\n  {node}\n}}", TABLE)
    assert str(error.value) == message
