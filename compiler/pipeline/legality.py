"""Invariants of a graph at each stage of a compilation.

    import     read from a model                     ops are known, the graph is valid
    optimize   after the lossless passes             and nothing is unused or left to fold
    recipe     after the recipe's passes             the same
    fusion     fused for TVM, before it is lowered   the graph is valid
    emission   lowered, before a file is written     ops are a runtime's, and constants dense

Cheap rules are checked in every compilation. Rules marked ``hard`` take longer, or breaking them only costs
size and speed: they are checked in tests (``HARD``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tersor.errors import InvalidGraph, PassFailed
from tersor.ir import Graph, Node, Value, parse, print_graph, verify, weights_of
from tersor.pipeline.report import PassReport
from tersor.pipeline.rewriting import Context, Pass

STAGES = ("import", "optimize", "recipe", "fusion", "emission")
HARD = False  # Whether hard rules are checked too.


@dataclass(frozen=True)
class Rule:
    """One invariant.

    Attributes:
        says: the invariant, in a few words.
        why: what goes wrong otherwise.
        stages: those where it must hold.
        broken: the violations, each naming the node or value.
        hard: whether it is checked in tests only.
    """

    says: str
    why: str
    stages: tuple[str, ...]
    broken: Callable[[Graph], Iterator[str]]
    hard: bool = False


# (name, graph): the input graph, then the graph after each pass.
History = Callable[[], Iterable[tuple[str, Graph]]]


def check(stage: str, graph: Graph, history: History | None = None) -> None:
    """Checks all rules of ``stage``; if one is broken, ``history`` serves to name the pass that broke it.

    Raises:
        PassFailed: a rule is broken; names the stage, the rule, the node and, if known, the pass.
    """
    for rule in RULES:
        if stage not in rule.stages or (rule.hard and not HARD):
            continue
        for violation in rule.broken(graph):
            culprit = "" if history is None else f": broken by {_culprit(rule, history())}"
            raise PassFailed(f"after {stage}, {rule.says}, but {violation} ({rule.why}){culprit}")


def replay(steps: Sequence[Pass], graph: Graph) -> Iterator[tuple[str, Graph]]:
    """The history of lossless passes, by running them again."""
    yield "the model", graph
    for step in steps:
        graph = graph.copy()
        step.run(graph, Context(PassReport(step.label)))
        yield step.label, graph


def _culprit(rule: Rule, history: Iterable[tuple[str, Graph]]) -> str:
    """The pass after which the rule stayed broken."""
    culprit = ""
    for name, graph in history:
        if not any(rule.broken(graph)):
            culprit = ""
        elif not culprit:
            culprit = name
    return culprit or "no pass alone"


# -- the rules -------------------------------------------------------------------------------------


def _structure(graph: Graph) -> Iterator[str]:
    yield from _invalid(lambda: verify(graph, types=False))


def _types(graph: Graph) -> Iterator[str]:
    yield from _invalid(lambda: verify(graph))


def _text(graph: Graph) -> Iterator[str]:
    text = print_graph(graph)
    yield from _invalid(lambda: parse(text, graph.table, weights_of(graph)))
    if print_graph(parse(text, graph.table, weights_of(graph))) != text:
        yield "the printed text parses into a different graph"


def _invalid(checked: Callable[[], object]) -> Iterator[str]:
    try:
        checked()
    except InvalidGraph as error:
        yield str(error)


def _ops(graph: Graph) -> Iterator[str]:
    from tersor.ops import TABLE  # Loading ONNX's schemas takes time.
    from tersor.ops.onnx_schema import schema, split_domain

    for node in graph.walk():
        domain, _ = split_domain(node.op)
        if (not domain or domain == "tersor") and node.op not in TABLE and schema(node.op) is None:
            yield f"{node.label} has neither"


def _dead(graph: Graph) -> Iterator[str]:
    for node in graph.walk():
        if not any(value.uses for value in node.outputs):
            yield f"nothing reads {node.label}"
    for value in _constants(graph):
        if not value.uses:
            yield f"nothing reads {value!r}"


def _foldable(graph: Graph) -> Iterator[str]:
    from tersor.ops.families.quantization import is_part_of_quantized_op

    for node in graph.walk():
        operands: list[Value | None] = list(node.inputs)
        if node.op != "DequantizeLinear" or not all(v is None or v.is_constant for v in operands):
            continue
        if not is_part_of_quantized_op(node):
            yield f"{node.label} reads constants only"


def _encoded(graph: Graph) -> Iterator[str]:
    for value in _constants(graph):
        if not value.is_dense and value.encoding is not None:
            yield f"{value!r} is {value.encoding.describe()}"


def _ours(graph: Graph) -> Iterator[str]:
    nodes: Iterator[Node] = graph.walk()
    yield from (f"{node.label} is not lowered" for node in nodes if node.op.startswith("tersor."))


def _constants(graph: Graph) -> Iterator[Value]:
    for owner in graph.all_graphs():
        yield from owner.constants.values()


OPTIMIZED, LOWERED = ("optimize", "recipe"), ("emission",)
RULES = (
    Rule("uses are exact, values are defined before they are read, names are unique",
         "rewrites rely on it", STAGES, _structure),
    Rule("every ONNX or tersor op has a row or a schema", "its meaning is unknown otherwise", STAGES, _ops,
         hard=True),
    Rule("types follow from the operands", "kernels are selected by type", STAGES, _types, hard=True),
    Rule("the text form parses back unchanged", "the graph could not be saved", STAGES, _text, hard=True),
    Rule("everything is read", "dead values cost size and time", OPTIMIZED, _dead, hard=True),
    Rule("quantized weights are constants", "passes would miss the weight", OPTIMIZED, _foldable, hard=True),
    Rule("constants are dense", "model files store no other encoding", LOWERED, _encoded, hard=True),
    Rule("tersor ops are lowered", "no runtime has them", LOWERED, _ours, hard=True),
)  # fmt: skip
