"""What has to be true of a graph at each stage of a compilation, stated once.

    import     read from a model                     ops are known, the graph is whole
    optimize   after the lossless passes             and nothing in it is unread or left to fold
    recipe     after what compresses                 the same
    fusion     fused for TVM, before it is lowered   the graph is whole
    emission   lowered, before a file is written     ops are a runtime's, and constants dense

Rules that cost no time are checked in every compilation. Those marked ``hard`` take longer, or what breaks
them does no harm but to size and speed: tests check them (``HARD``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tersor.errors import InvalidGraph, PassFailed
from tersor.ir import Graph, Node, Value, parse, print_graph, verify, weights_of
from tersor.pipeline.report import PassReport
from tersor.pipeline.rewriting import Context, Pass

STAGES = ("import", "optimize", "recipe", "fusion", "emission")
HARD = False  # Whether the hard rules are checked, too.


@dataclass(frozen=True)
class Rule:
    """One thing that has to be true.

    Attributes:
        says: what, in a few words.
        why: what goes wrong otherwise.
        stages: at which it has to be true.
        broken: messages of what breaks it, each with the node or value.
        hard: whether it is checked in tests only.
    """

    says: str
    why: str
    stages: tuple[str, ...]
    broken: Callable[[Graph], Iterator[str]]
    hard: bool = False


History = Callable[
    [], Iterable[tuple[str, Graph]]
]  # A graph, then what each pass made of it, by its name.


def check(stage: str, graph: Graph, history: History | None = None) -> None:
    """That all rules of ``stage`` hold for ``graph``. ``history`` is asked for where one does not.

    Raises:
        PassFailed: one does not hold; names the stage, the rule, the node, and where it can the pass.
    """
    for rule in RULES:
        if stage not in rule.stages or (rule.hard and not HARD):
            continue
        for found in rule.broken(graph):
            guilty = "" if history is None else f": {_guilty(rule, history())} did it"
            raise PassFailed(f"after {stage}, {rule.says}, but {found} ({rule.why}){guilty}")


def replay(steps: Sequence[Pass], graph: Graph) -> Iterator[tuple[str, Graph]]:
    """The history of lossless passes, by running them again."""
    yield "the model", graph
    for step in steps:
        graph = graph.copy()
        step.run(graph, Context(PassReport(step.label)))
        yield step.label, graph


def _guilty(rule: Rule, history: Iterable[tuple[str, Graph]]) -> str:
    """The pass after which the rule was broken for good."""
    guilty = ""
    for name, graph in history:
        if not any(rule.broken(graph)):
            guilty = ""
        elif not guilty:
            guilty = name
    return guilty or "no pass alone"


# -- the rules -------------------------------------------------------------------------------------


def _structure(graph: Graph) -> Iterator[str]:
    yield from _invalid(lambda: verify(graph, types=False))


def _types(graph: Graph) -> Iterator[str]:
    yield from _invalid(lambda: verify(graph))


def _text(graph: Graph) -> Iterator[str]:
    text = print_graph(graph)
    yield from _invalid(lambda: parse(text, graph.table, weights_of(graph)))
    if print_graph(parse(text, graph.table, weights_of(graph))) != text:
        yield "it reads back as another graph"


def _invalid(checked: Callable[[], object]) -> Iterator[str]:
    try:
        checked()
    except InvalidGraph as error:
        yield str(error)


def _ops(graph: Graph) -> Iterator[str]:
    from tersor.ops import TABLE  # It knows ONNX's schemas, which take time to load.
    from tersor.ops.onnx_schema import schema, split_domain

    for node in graph.walk():
        domain, _ = split_domain(node.op)
        if (not domain or domain == "tersor") and node.op not in TABLE and schema(node.op) is None:
            yield f"{node.label} has none"


def _dead(graph: Graph) -> Iterator[str]:
    for node in graph.walk():
        if not any(value.uses for value in node.outputs):
            yield f"nothing reads {node.label}"
    for value in _constants(graph):
        if not value.uses:
            yield f"nothing reads {value!r}"


def _foldable(graph: Graph) -> Iterator[str]:
    for node in graph.walk():
        operands: list[Value | None] = list(node.inputs)
        if node.op == "DequantizeLinear" and all(v is None or v.is_constant for v in operands):
            yield f"{node.label} reads constants only"


def _encoded(graph: Graph) -> Iterator[str]:
    for value in _constants(graph):
        if not value.is_dense and value.encoding is not None:
            yield f"{value!r} is {value.encoding.describe()}"


def _ours(graph: Graph) -> Iterator[str]:
    nodes: Iterator[Node] = graph.walk()
    yield from (f"{node.label} is left" for node in nodes if node.op.startswith("tersor."))


def _constants(graph: Graph) -> Iterator[Value]:
    for owner in graph.all_graphs():
        yield from owner.constants.values()


OPTIMIZED, LOWERED = ("optimize", "recipe"), ("emission",)
RULES = (
    Rule("uses are exact, values are made before they are read, names are unique",
         "whoever rewrites the graph relies on it", STAGES, _structure),
    Rule("every op of ONNX or of ours has a row or a schema", "nothing knows what it computes", STAGES, _ops,
         hard=True),
    Rule("types follow from what is read", "kernels are chosen by them", STAGES, _types, hard=True),
    Rule("the text reads back the same", "it could not be saved", STAGES, _text, hard=True),
    Rule("all is read", "it takes room and time", OPTIMIZED, _dead, hard=True),
    Rule("quantized weights are constants", "passes would see no weight", OPTIMIZED, _foldable, hard=True),
    Rule("constants are dense", "a file has no other form", LOWERED, _encoded, hard=True),
    Rule("ops of ours are lowered", "no runtime has them", LOWERED, _ours, hard=True),
)  # fmt: skip
