"""The net under all passes: a result that is far from what it was made of is refused, and where that came in.

    input  ==  the graph after each lossless pass          to rounding
    the compressed graph  ==  what was built of it         to rounding, and what int8 makes of that

What lossy passes cost lies between the two, and is judged by a recipe's floor. Tolerances are wide: what
crosses them is a bug of ours. A label may change by rounding where it was undecided; where floats are
returned too, they alone tell.
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

LOSSLESS = 0.99  # Of what passes that claim to keep values have to keep: a relative error of 0.14.
BUILT = 0.95  # Of what is built: kernels round what they quantize in other places.
LABELS = 0.5
SHAKEN = 1e-5  # What passes that claim to keep values may round off: of the largest output, each.
FEEDS = 8  # Batches that tell it.
REPORT = "this is a bug of tersor, please report it; nothing is written"


def check_lossless(
    steps: Sequence[Step], before: Graph, after: Graph, feeds: Feeds, evaluate: Evaluate
) -> list[str]:
    """That ``after`` computes what ``before`` does, which ``steps`` made it of. Returns what is to be said
    where that cannot be known: a model that quantizes what it computes can be so sensitive, to inputs that
    mean nothing above all, that any rounding changes its outputs.

    Raises:
        PassFailed: it does not; names the pass, found by bisection.
    """
    judge = Judge(before, [*islice(feeds, FEEDS)], evaluate)

    def lost(graph: Graph) -> OutputFidelity | None:
        return _far(judge(graph), LOSSLESS)

    try:
        worst = None if _untellable(before, feeds) else lost(after)
        if worst is None:
            return []
        if (moved := lost(_shaken(before))) is not None:
            return [
                "rounding alone changes what the model computes on these inputs: with weights moved by "
                f"{SHAKEN:g} of themselves, {_told(moved)}; whether lossless passes keep it is unknown"
            ]
        # By the passes as they ran, those of a group in each of its rounds.
        whole = Pipeline(steps, evaluate=evaluate)
        whole.run(before)
        ran = whole.ran

        def lost_by(count: int) -> bool:
            return lost(Pipeline(ran[:count], evaluate=evaluate).run(before)) is not None

        first = _first(len(ran), lost_by)
    except PassFailed:
        raise
    except TersorError:
        return []  # The reference runtime does not run one of them: then nothing is known.
    raise PassFailed(
        f"{ran[first - 1].label} (pass {first} of {len(ran)}) changes what the model computes: "
        f"{_told(worst)}; {REPORT}"
    )


def _shaken(graph: Graph) -> Graph:
    """The same with other last bits in its weights."""
    rng, copy = np.random.default_rng(0), graph.copy()
    for owner in copy.all_graphs():
        for constant in owner.constants.values():
            array = constant.numpy() if constant.is_dense else None
            if array is not None and array.dtype.kind == "f" and array.size > 1:
                moved = array * (1 + SHAKEN * rng.uniform(-1, 1, array.shape))
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
    """That what was built of ``graph`` computes what it says.

    Args:
        built: runs it on a feed.
        rebuild: builds another graph in the same way.
        name: of the runtime that it is built for.

    Raises:
        PassFailed: it does not; names the first node of which that is so, found by bisection.
    """
    try:
        worst = None if _untellable(graph, feeds) else _difference(graph, built, feeds, evaluate)
        if worst is None:
            return
        where = _first_node(graph, rebuild, feeds, evaluate)
    except TersorError:
        return
    at = f", first at {where.label}" if where is not None else ""
    raise PassFailed(
        f"what was built for runtime {name} is not what its graph says{at}: {_told(worst)}; {REPORT}"
    )


def _first_node(
    graph: Graph, rebuild: Callable[[Graph], Run], feeds: Feeds, evaluate: Evaluate
) -> Node | None:
    """The first node whose result differs; None where none does by itself, or not all are built so."""
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
    """The fewest of ``count`` that fail, where all of them do, and none do not."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


def _far(found: Fidelity, limit: float) -> OutputFidelity | None:
    """The output that is too far; None where none is. How many elements an output has may hang by
    rounding, too."""
    told = [o for o in found.outputs if not o.decides and o.kept is not None and not o.reshaped]
    floats = [o for o in told if o.agreement is None]
    far = [o for o in floats or told if (o.kept or 0) < (limit if floats else LABELS)]
    return far[0] if far else None


def _untellable(graph: Graph, feeds: Feeds) -> bool:
    return not feeds or is_random(graph)


def _told(one: OutputFidelity) -> str:
    if one.broken:
        return f"{one.broken} elements of output {one.name} became NaN or infinite"
    if one.agreement is not None:
        return f"{1 - one.agreement:.0%} of output {one.name} differ"
    return f"output {one.name} has a relative error of {one.relative_error:.3g}"
