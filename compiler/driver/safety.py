"""The safety net under all passes: a result far from its source is refused, naming the pass or node at fault.

    input  ==  the graph after each lossless pass            up to rounding
    the compressed graph  ==  the model built from it        up to rounding, amplified by int8

The cost of lossy passes lies between the two, and is judged by the recipe's floor. Tolerances are wide:
exceeding them is a bug in Tersor. Rounding may change a label that was a near tie; if a model returns floats
too, only those are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from tersor.driver.judging import Judge, Run, is_random
from tersor.errors import PassFailed, TersorError
from tersor.ir import Dense, Graph, Node, TensorType, extract
from tersor.numerics.fidelity import Fidelity, OutputFidelity
from tersor.pipeline import Pipeline, Step
from tersor.pipeline.rewriting import Evaluate, Feeds

LOSSLESS = 0.99  # Least share kept by passes that claim to keep values: a relative error of 0.14.
BUILT = 0.95  # Least share kept by building: kernels round at other places when they quantize.
LABELS = 0.5
PERTURBATION = 1e-5  # Of weights: rounding that lossless passes may cause.
FEEDS = 8  # Batches compared.
REPORT = "this is a bug in Tersor, please report it; nothing is written"


def check_lossless(
    steps: Sequence[Step], before: Graph, after: Graph, feeds: Feeds, evaluate: Evaluate
) -> list[str]:
    """Checks that ``after``, the result of ``steps`` on ``before``, computes the same. Returns a remark if
    that cannot be decided: a model that quantizes intermediate values can be so sensitive, above all to
    synthetic inputs, that any rounding changes its outputs.

    Raises:
        PassFailed: it does not; names the pass, located by bisection.
    """
    judge = Judge(before, [*islice(feeds, FEEDS)], evaluate)

    def lost(graph: Graph) -> OutputFidelity | None:
        return _far(judge(graph), LOSSLESS)

    try:
        worst = None if _incomparable(before, feeds) else lost(after)
        if worst is None:
            return []
        if (moved := lost(_perturbed(before))) is not None:
            return [
                "rounding alone changes what the model computes on these inputs: with weights perturbed by "
                f"{PERTURBATION:g} of their values, {_describe(moved)}; whether lossless passes are exact is "
                "unknown"
            ]
        # Passes as they ran: those of a group once per round.
        whole = Pipeline(steps, evaluate=evaluate)
        whole.run(before)
        ran = whole.ran

        def lost_by(count: int) -> bool:
            return lost(Pipeline(ran[:count], evaluate=evaluate).run(before)) is not None

        first = _first(len(ran), lost_by)
    except PassFailed:
        raise
    except TersorError:
        return []  # The reference runtime cannot run one of the graphs: no verdict.
    raise PassFailed(
        f"{ran[first - 1].label} (pass {first} of {len(ran)}) changes what the model computes: "
        f"{_describe(worst)}; {REPORT}"
    )


def _perturbed(graph: Graph) -> Graph:
    """A copy with weights perturbed by rounding."""
    rng, copy = np.random.default_rng(0), graph.copy()
    for owner in copy.all_graphs():
        for constant in owner.constants.values():
            array = constant.numpy() if constant.is_dense else None
            if array is not None and array.dtype.kind == "f" and array.size > 1:
                moved = array * (1 + PERTURBATION * rng.uniform(-1, 1, array.shape))
                owner.set_encoding(constant, Dense(moved.astype(array.dtype)))
    return copy


def check_built(
    graph: Graph,
    built: Run,
    rebuild: Callable[[Graph], Run],
    feeds: Feeds,
    evaluate: Evaluate,
    name: str,
) -> None:
    """Checks that the model built from ``graph`` computes what the graph says.

    Args:
        built: runs the built model on a feed.
        rebuild: builds another graph in the same way.
        name: the runtime's name.

    Raises:
        PassFailed: it does not; names the first node that differs, located by bisection.
    """
    try:
        worst = None if _incomparable(graph, feeds) else _difference(graph, built, feeds, evaluate)
        if worst is None:
            return
        where = _first_node(graph, rebuild, feeds, evaluate)
    except TersorError:
        return
    at = f", first at {where.label}" if where is not None else ""
    raise PassFailed(
        f"the model built for runtime {name} does not compute what its graph says{at}: "
        f"{_describe(worst)}; {REPORT}"
    )


def _first_node(
    graph: Graph, rebuild: Callable[[Graph], Run], feeds: Feeds, evaluate: Evaluate
) -> Node | None:
    """The first node whose result differs; None if no single node does, or a part cannot be built."""
    nodes = [n for n in graph.nodes if isinstance(n.outputs[0].type, TensorType)]

    def differs(count: int) -> bool:
        part = extract(graph, None, [nodes[count - 1].outputs[0]])
        return _difference(part, rebuild(part), [*islice(feeds, 1)], evaluate) is not None

    try:
        return nodes[_first(len(nodes), differs) - 1] if nodes else None
    except TersorError:
        return None


def _difference(
    graph: Graph, built: Run, feeds: Feeds, evaluate: Evaluate
) -> OutputFidelity | None:
    judge = Judge(graph, [*islice(feeds, FEEDS)], evaluate)
    return _far(judge.of_built(lambda feed: evaluate(graph, feed), built, None), BUILT)


def _first(count: int, fails: Callable[[int], bool]) -> int:
    """The least n for which ``fails(n)``, given that ``fails(count)`` and not ``fails(0)``."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


def _far(fidelity: Fidelity, limit: float) -> OutputFidelity | None:
    """The first output that is too far off, or None. Outputs whose number of elements differs are skipped:
    it may depend on rounding."""
    known = [o for o in fidelity.outputs if not o.decides and o.kept is not None and not o.reshaped]
    floats = [o for o in known if o.agreement is None]
    far = [o for o in floats or known if (o.kept or 0) < (limit if floats else LABELS)]
    return far[0] if far else None


def _incomparable(graph: Graph, feeds: Feeds) -> bool:
    return not feeds or is_random(graph)


def _describe(one: OutputFidelity) -> str:
    if one.broken:
        return f"{one.broken} elements of output {one.name} became NaN or infinite"
    if one.agreement is not None:
        return f"{1 - one.agreement:.0%} of output {one.name} differ"
    return f"output {one.name} has a relative error of {one.relative_error:.3g}"
