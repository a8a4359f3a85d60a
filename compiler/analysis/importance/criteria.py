"""The criteria by name, and scores of all groups by one of them.

Scores of different groups are compared where the choice is for the whole model.  Criteria that estimate
what the model's outputs lose, and shares of 1, compare as they are.  The others say something only
within a group, as norms grow with the size of what they are taken of: they are divided by their mean
over the group's free units (Torch-Pruning's default for DepGraph), so that 0.1 is a tenth of what is
usual there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tersor.analysis.importance import weights
from tersor.errors import InvalidOption, suggest
from tersor.ir import Graph
from tersor.pipeline import Evaluate, Feeds
from tersor.structure import AxisGroup


@dataclass(frozen=True)
class Request:
    """What is asked of a criterion: scores of ``groups``, which are those of ``graph``."""

    graph: Graph
    groups: Sequence[AxisGroup]
    feeds: Feeds = ()
    evaluate: Evaluate | None = None
    seed: int = 0


@dataclass(frozen=True)
class Criterion:
    """A way to tell what units are worth.

    Attributes:
        description: one line, with its source.
        scores: f64[units] for each group that is asked for, higher matters more.
        needs_data: whether calibration inputs are run.
        relative: whether scores are divided by their mean over the group's free units.
    """

    description: str
    scores: Callable[[Request], Sequence[np.ndarray]]
    needs_data: bool = False
    relative: bool = False


def importance(
    criterion: str,
    graph: Graph,
    groups: Sequence[AxisGroup],
    feeds: Feeds = (),
    evaluate: Evaluate | None = None,
    seed: int = 0,
) -> list[np.ndarray]:
    """f64[units] for each of ``groups``, higher matters more; finite for every free unit, and zeros for
    groups without one. ``graph`` stays as it is.

    Raises:
        InvalidOption: the criterion does not exist, needs calibration and has none, or tells nothing of
            some group (:func:`refusal`).
    """
    chosen = _find(criterion)
    if chosen.needs_data and not (feeds and evaluate):
        raise InvalidOption(f"criterion {criterion} needs calibration, and none was given")
    open_groups = [group for group in groups if group.free]
    for group in open_groups:
        if reason := refusal(criterion, graph, group):
            raise InvalidOption(f"criterion {criterion} tells nothing of {group.name}: {reason}")
    found = chosen.scores(Request(graph, open_groups, feeds, evaluate, seed))
    by_group = dict(zip(open_groups, found, strict=True))
    return [
        _checked(criterion, group, by_group[group]) if group in by_group else np.zeros(group.units)
        for group in groups
    ]


def refusal(criterion: str, graph: Graph, group: AxisGroup) -> str:
    """Why a criterion can tell nothing of a group; empty if it can."""
    _find(criterion)
    if broken := weights.unsound(group):
        return f"its weight @{broken[0].name} holds NaN or infinity"
    return ""


def _find(name: str) -> Criterion:
    if name not in CRITERIA:
        known = ", ".join(CRITERIA)
        raise InvalidOption(f"no criterion {name!r}{suggest(name, CRITERIA)}; there are {known}")
    return CRITERIA[name]


def _checked(criterion: str, group: AxisGroup, scores: np.ndarray) -> np.ndarray:
    free = scores[group.free]
    if not np.isfinite(free).all():
        raise InvalidOption(
            f"criterion {criterion} tells nothing of {group.name}: calibration leads to NaN or infinity"
        )
    mean = float(free.mean())
    return scores / mean if CRITERIA[criterion].relative and mean > 0 else scores


def _each(score: Callable[[AxisGroup], np.ndarray], request: Request) -> list[np.ndarray]:
    return [score(group) for group in request.groups]


def _random(request: Request) -> list[np.ndarray]:
    return [weights.random(group, request.seed, i) for i, group in enumerate(request.groups)]


CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(
        "sum of the magnitudes of all weights of a unit (Li et al. 2017)",
        partial(_each, partial(weights.magnitude, order=1)),
        relative=True,
    ),
    "l2": Criterion(
        "L2 norm of all weights of a unit (Fang et al. 2023)",
        partial(_each, partial(weights.magnitude, order=2)),
        relative=True,
    ),
    "fpgm": Criterion(
        "distance from the geometric median of what makes the units (He et al. 2019)",
        partial(_each, weights.median_distance),
        relative=True,
    ),
    "random": Criterion("a number drawn from [0, 1), by the seed", _random),
}
