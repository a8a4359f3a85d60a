"""Rewrites that take away the graph in which others wait: found by random graphs."""

from __future__ import annotations

from tersor.ir import parse, verify
from tersor.ops import TABLE
from tersor.passes.canonicalize.eliminate_identity import EliminateIdentity
from tersor.pipeline import Pipeline

# The branch is taken in place of the If while its nodes are still to be visited.
TEXT = """
graph main(%x0: f64[batch, 0], %x1: f64[2, 3]) -> (y0 = %range) {
@i: i64[1] = dense [-1]
@i_1: i64[1] = dense [5]
@i_2: i64[1] = dense [0]
@i_3: i64[1] = dense [30]
@i_4: i64[1] = dense [0]
@i_5: i64[1] = dense [1]
@i_6: i64[3] = dense [2, 3, 5]
@flag: bool[] = dense [true]
@k: f64[] = dense [1.0]
@k_1: f64[] = dense [0.0]
@k_2: f64[] = dense [-0.30000001192092896]
%argmin: i64[2] = ArgMin(%x1) {axis = 1, keepdims = 0, select_last_index = 1}
%if: f64[2, 3], %if_1: f64[2, 3] = If(@flag) {else_branch = graph else() -> (a = %tanh, b = %x1) {
    @i_7: i64[1] = dense [0]
    @i_8: i64[1] = dense [0]
    @c: f64[] = dense [1.3404086544881513]
    %softmax: f64[2, 3] = Softmax(%x1) {axis = -1}
    %unsqueeze: f64[1, 2, 3] = Unsqueeze(%x1, @i_7)
    %squeeze: f64[2, 3] = Squeeze(%unsqueeze, @i_8)
    %add: f64[2, 3] = Add(%x1, @c)
    %reducemean: f64[] = ReduceMean(%unsqueeze, _) {keepdims = 0, noop_with_empty_axes = 0}
    %add_1: f64[2, 3] = Add(%add, %reducemean)
    %tanh: f64[2, 3] = Tanh(%add_1)
  }, then_branch = graph then() -> (a = %mul_1, b = %mul_1) {
    %min: f64[batch, 0] = Min(%x0, %x0)
    %mul: f64[2, 3] = Mul(%x1, %x1)
    %mul_1: f64[2, 3] = Mul(%x1, %x1)
  }}
%concat: f64[2, 3] = Concat(%if) {axis = -1}
%range: f64[4] = Range(@k, @k_1, @k_2) {stash_type = 1}
}
"""


def test_nodes_of_a_graph_that_is_gone_are_not_visited() -> None:
    graph = parse(TEXT.strip(), TABLE)
    after = Pipeline([EliminateIdentity()], level="none").run(graph)
    verify(after)
    assert all(node.op != "If" for node in after.walk())
