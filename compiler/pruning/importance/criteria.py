"""The criteria by name, and scores of all groups by one of them.

Scores are compared across groups when units are chosen for the whole model.  Criteria that estimate the loss
of the model's outputs, or shares of 1, are comparable as they are.  Others mean something only within a
group, as norms grow with the size of the weights: they are divided by their mean over the group's free units
(Torch-Pruning's default for DepGraph), so that 0.1 is a tenth of the average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tersor.errors import InvalidOption, suggest
from tersor.ir import Graph
from tersor.pipeline import Evaluate, Feeds
from tersor.pruning.importance import activations, gradients, information, structural, weights
from tersor.pruning.importance.readers import readers, visible
from tersor.structure import AxisGroup


@dataclass(frozen=True)
class Request:
    """The input of a criterion: score the units of ``groups`` of ``graph``."""

    graph: Graph
    groups: Sequence[AxisGroup]
    feeds: Feeds = ()
    evaluate: Evaluate | None = None
    seed: int = 0


@dataclass(frozen=True)
class Criterion:
    """A measure of the importance of units.

    Attributes:
        description: one line, with its source.
        scores: f64[units] for each group of the request; higher is more important.
        needs_data: whether it runs calibration inputs.
        relative: whether scores are divided by their mean over the group's free units.
        reads: whether it needs nodes that sum over the units.
        observes: whether it needs the activations that these nodes read.
    """

    description: str
    scores: Callable[[Request], Sequence[np.ndarray]]
    needs_data: bool = False
    relative: bool = False
    reads: bool = False
    observes: bool = False


def importance(
    criterion: str,
    graph: Graph,
    groups: Sequence[AxisGroup],
    feeds: Feeds = (),
    evaluate: Evaluate | None = None,
    seed: int = 0,
) -> list[np.ndarray]:
    """f64[units] for each of ``groups``; higher is more important. Finite for every free unit; zeros for
    groups without one. ``graph`` is not changed.

    Raises:
        InvalidOption: an unknown criterion, one that needs calibration without any, or one that does not
            apply to some group (:func:`refusal`).
    """
    chosen = _find(criterion)
    if chosen.needs_data and not (feeds and evaluate):
        raise InvalidOption(f"criterion {criterion} needs calibration inputs, and none were given")
    open_groups = [group for group in groups if group.free]
    for group in open_groups:
        if reason := refusal(criterion, graph, group):
            raise InvalidOption(f"criterion {criterion} does not apply to {group.name}: {reason}")
    scores = chosen.scores(Request(graph, open_groups, feeds, evaluate, seed))
    by_group = dict(zip(open_groups, scores, strict=True))
    return [
        _checked(criterion, group, by_group[group]) if group in by_group else np.zeros(group.units)
        for group in groups
    ]


def refusal(criterion: str, graph: Graph, group: AxisGroup) -> str:
    """Why a criterion does not apply to a group; empty if it does."""
    chosen = _find(criterion)
    if broken := weights.unsound(group):
        return f"its weight @{broken[0].name} contains NaN or infinity"
    if (chosen.reads or chosen.observes) and not readers(group):
        return "no node sums over its units"
    if chosen.observes and not visible(graph, group):
        return "its units are read in a subgraph, which calibration does not observe"
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
            f"criterion {criterion} does not apply to {group.name}: calibration leads to NaN or infinity"
        )
    mean = float(free.mean())
    return scores / mean if CRITERIA[criterion].relative and mean > 0 else scores


def _each(score: Callable[[AxisGroup], np.ndarray], request: Request) -> list[np.ndarray]:
    return [score(group) for group in request.groups]


def _random(request: Request) -> list[np.ndarray]:
    return [weights.random(group, request.seed, i) for i, group in enumerate(request.groups)]


def _watched(
    score: Callable[[Graph, AxisGroup, activations.SeenAt], np.ndarray], request: Request
) -> list[np.ndarray]:
    assert request.evaluate is not None
    seen = activations.watch(request.graph, request.groups, request.feeds, request.evaluate)
    return [score(request.graph, group, seen) for group in request.groups]


def _obs(request: Request) -> list[np.ndarray]:
    assert request.evaluate is not None
    return list(activations.obs(request.graph, request.groups, request.feeds, request.evaluate))


def _slopes(request: Request, times_weight: bool) -> list[np.ndarray]:
    return gradients.slopes(
        request.graph, request.groups, request.feeds, request.seed, times_weight=times_weight
    )


def _fisher(request: Request) -> list[np.ndarray]:
    return gradients.fisher(request.graph, request.groups, request.feeds, request.seed)


def _information(request: Request) -> list[np.ndarray]:
    assert request.evaluate is not None
    return information.information_gain(
        request.graph, request.groups, request.feeds, request.evaluate
    )


def _structural(request: Request) -> list[np.ndarray]:
    return structural.path_shares(request.graph, request.groups)


CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(
        "sum of the magnitudes of all weights of a unit (Li et al. 2017)",
        partial(_each, partial(weights.magnitude, order=1)),
        relative=True,
    ),
    "l2": Criterion(
        "L2 norm of all weights of a unit (Li et al. 2017; Fang et al. 2023)",
        partial(_each, partial(weights.magnitude, order=2)),
        relative=True,
    ),
    "fpgm": Criterion(
        "distance of a unit's producing weights from the geometric median (He et al. 2019)",
        partial(_each, weights.median_distance),
        relative=True,
    ),
    "random": Criterion("a random number in [0, 1), by the seed", _random),
    "structural": Criterion(
        "share of the paths from inputs to outputs through a unit, by the graph alone",
        _structural,
    ),
    "activation-mean": Criterion(
        "mean magnitude of a unit's activation where it is read",
        partial(_watched, activations.mean),
        needs_data=True,
        relative=True,
        observes=True,
    ),
    "activation-max": Criterion(
        "largest magnitude of a unit's activation where it is read",
        partial(_watched, activations.largest),
        needs_data=True,
        relative=True,
        observes=True,
    ),
    "apoz": Criterion(
        "share of a unit's activations above zero, for ReLU and the like (Hu et al. 2016)",
        partial(_watched, activations.alive),
        needs_data=True,
        observes=True,
    ),
    "wanda": Criterion(
        "magnitude of the weights that read a unit times the norm of its activations (Sun et al. 2023)",
        partial(_watched, activations.wanda),
        needs_data=True,
        relative=True,
        observes=True,
    ),
    "obs": Criterion(
        "relative error of its readers' outputs once the other units compensate (Hassibi and Stork 1993)",
        _obs,
        needs_data=True,
        observes=True,
    ),
    "gradient": Criterion(
        "sum of magnitudes of the outputs' gradients by a unit's weights",
        partial(_slopes, times_weight=False),
        needs_data=True,
    ),
    "taylor": Criterion(
        "sum of |weight times gradient| over a unit's weights (Molchanov et al. 2019)",
        partial(_slopes, times_weight=True),
        needs_data=True,
    ),
    "fisher": Criterion(
        "mean squared gradient by a mask of the unit (Kwon et al. 2022)",
        _fisher,
        needs_data=True,
        reads=True,
    ),
    "information-gain": Criterion(
        "measured change of the outputs without a unit, or a chunk of similar ones",
        _information,
        needs_data=True,
        reads=True,
    ),
}
