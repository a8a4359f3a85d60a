"""Structured pruning: heads, neurons, channels, hidden units go, and every runtime is faster for it.

Three questions, each answered in one place.  What goes together: ``tersor.structure``, by the op table's
ties.  How many units of which group go: ``tersor.pruning.amounts``, a share of each or a budget.  Which:
``tersor.pruning.ranking``, by second-order costs or a criterion.

With calibration, groups go one after the other in the order of the graph, and the layers that read them are
fitted anew (``tersor.pruning.cutting``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tersor.analysis.selection import Selection
from tersor.errors import InvalidOption, suggest
from tersor.ir import Graph, Value
from tersor.pipeline import LOSSY, Context
from tersor.pruning import amounts, budgets, cutting
from tersor.pruning.importance import CRITERIA
from tersor.pruning.ranking import Ranking
from tersor.pruning.unit_order import only_met
from tersor.structure import AxisGroup, axis_groups, join_vectors, part_vectors
from tersor.structure.costs import macs, parameters
from tersor.structure.tracking import Tracked, spans


@dataclass(frozen=True)
class PruneStructure(Selection):
    """Options, of which one says how much goes (by default nothing):

    ratio: the share of every group's units that goes.
    threshold: units that are worth less go, by ``criterion``, where 1 is the mean of a group.
    macs: the share of the multiply-adds that stays, at the largest of the sizes that are measured.
    parameters: the share of the weights that stays.
    latency: the share of the measured time that stays, at the same sizes.

    criterion: what a unit is worth: ``obs`` (least squares), or one of ``tersor.pruning.importance``.
    allocation: how a budget is shared out: ``uniform``, the same share of every group; ``global``, by the
        criterion's scores alone; ``greedy``, by losses that are scaled by what each group does to the
        outputs; ``exact``, the same by dynamic programming, for latency; ``evolutionary``, greedy, then
        mutations by measured loss.
    reconstruct: fit the layers that read a group anew.
    inexact: also groups whose removal changes what a norm sees (the channels of a residual stream).
    damping: added to the diagonals of least squares, relative to their mean.
    seed: of what is random.

    Scopes are those of groups: their names.
    """

    keeps = LOSSY
    one_of = frozenset({"ratio", "threshold", "macs", "parameters", "latency"})
    budget = one_of
    fits = True
    ratio: float = 0.0
    threshold: float = 0.0
    macs: float = 1.0
    parameters: float = 1.0
    latency: float = 1.0
    criterion: str = "obs"
    allocation: Literal["uniform", "global", "greedy", "exact", "evolutionary"] = "greedy"
    reconstruct: bool = True
    inexact: bool = False
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise InvalidOption(f"pass prune-structure: {problem}")

    def run(self, graph: Graph, context: Context) -> None:
        self._check_data(context)
        parted = part_vectors(graph)
        groups = self._wanted(graph, context)
        if not self._asked or not groups:
            why = "nothing is asked to go" if groups else "no group of units may be cut"
            context.remark(f"{why}: nothing is pruned")
            join_vectors(graph, parted)
            return
        before = _sizes_of(graph, context)
        original, tracked = graph.copy(), [Tracked(g) for g in groups]
        ranking = Ranking(
            graph, context, criterion=self.criterion, damping=self.damping, seed=self.seed
        )
        gone = self._amounts(groups, ranking)
        cutting.prune(original, ranking, tracked, gone, reconstruct=self.reconstruct)
        join_vectors(graph, parted)
        _tell(tracked, before, _sizes_of(graph, context), context)

    def _amounts(self, groups: Sequence[AxisGroup], ranking: Ranking) -> list[int]:
        """Units that go, for each group."""
        (asked,) = self._asked
        if asked == "ratio":
            return amounts.by_share(groups, self.ratio)
        if asked == "threshold":
            return amounts.by_threshold(groups, ranking, self.threshold)
        budget = amounts.Budget(asked, getattr(self, asked), self.allocation)
        return amounts.by_budget(groups, ranking, budget)

    def milder(self, share: float, left: float | None) -> PruneStructure | None:
        """A budget that could not be met counts from what was left."""
        if not self._asked:
            return None
        (asked,) = self._asked
        value: float = getattr(self, asked)
        if asked in ("ratio", "threshold"):
            return replace(self, **{asked: _rounded(value * share)})  # type: ignore[arg-type]
        most = 1 - max(value, left or 0.0)
        if most < WORTH:
            return None
        return replace(self, **{asked: _rounded(1 - most * share)})  # type: ignore[arg-type]

    # -- options -------------------------------------------------------------------------------------

    @property
    def _asked(self) -> list[str]:
        """Names of the options that say how much goes."""
        none = {"ratio": 0.0, "threshold": 0.0, "macs": 1.0, "parameters": 1.0, "latency": 1.0}
        return [name for name, value in none.items() if getattr(self, name) != value]

    def _problem(self) -> str:
        """What is wrong with the options; empty if nothing is."""
        if len(self._asked) > 1:
            return f"{' and '.join(self._asked)} are given, and one of them says how much goes"
        if not 0 <= self.ratio < 1:
            return f"ratio {self.ratio:g} is not from 0 to less than 1, where no unit is left"
        if not 0 <= self.threshold < float("inf"):
            return f"threshold {self.threshold:g} is not a number from 0"
        if not 0 < self.damping < float("inf"):
            return f"damping {self.damping:g} is not a number above 0"
        for name in ("macs", "parameters", "latency"):
            if not 0 < (share := getattr(self, name)) <= 1:
                return f"{name} {share:g} is not a share that stays, more than 0 and at most 1"
        if self.criterion != "obs" and self.criterion not in CRITERIA:
            known = ["obs", *CRITERIA]
            hint = suggest(self.criterion, known)
            return f"no criterion {self.criterion!r}{hint}; there are {', '.join(known)}"
        if self.allocation == "exact" and self._asked and self._asked != ["latency"]:
            return "allocation exact is for latency, whose savings add up"
        return ""

    def _check_data(self, context: Context) -> None:
        if "latency" in self._asked and context.latency is None:
            raise InvalidOption(
                f"{self.label} needs a target that can be measured here; macs=… counts instead"
            )
        if context.calibration and context.evaluate is not None:
            return
        needing = [
            text
            for needed, text in (
                (self.criterion == "obs", "criterion obs (without data there is l2)"),
                (self.reconstruct, "reconstruct (or reconstruct=false)"),
                (
                    self.allocation in ("greedy", "exact", "evolutionary") and self._is_budget,
                    f"allocation {self.allocation} (without data there are uniform and global)",
                ),
            )
            if needed
        ]
        if needing and self._asked:
            raise InvalidOption(f"{self.label} needs calibration, for {'; '.join(needing)}")

    @property
    def _is_budget(self) -> bool:
        return bool({"macs", "parameters", "latency"} & set(self._asked))

    # -- groups --------------------------------------------------------------------------------------

    def _wanted(self, graph: Graph, context: Context) -> list[AxisGroup]:
        """Groups to cut; why the others stay is told."""
        found = axis_groups(graph)
        kept = []
        for group in self.chosen(graph, found, context):
            node = group.links[0].node
            broken = [v for _, v, _ in group.weights(summed=False) if not _finite(v)]
            broken += [v for _, v, _ in group.weights(summed=True) if not _finite(v)]
            if not group.free:
                reason = next(iter(group.pinned.values()))
            elif broken:
                reason = f"{broken[0].name} holds NaN or infinity"
            elif group.inexact and not self.inexact and not only_met(group):
                reason = group.inexact
            else:
                kept.append(group)
                continue
            context.skip(node, reason, method=f"the {group.units} units of {group.name} stay")
        return kept


WORTH = 0.005  # A budget that takes less is none.


def _rounded(share: float) -> float:
    return float(f"{share:.3g}") if share < 0.1 else round(share, 3)


def _finite(value: Value) -> bool:
    return bool(np.isfinite(value.numpy()).all())


def _sizes_of(graph: Graph, context: Context) -> tuple[float, float]:
    sizes = budgets.largest_sizes(graph, context.latency)
    return sum(macs(sizes)(graph).values()), sum(parameters(graph).values())


def _tell(
    tracked: Sequence[Tracked],
    before: tuple[float, float],
    after: tuple[float, float],
    context: Context,
) -> None:
    for name, was, now in zip(("multiply-adds", "weights"), before, after, strict=True):
        context.remark(
            f"{name}: {now:.4g} of {was:.4g} ({now / was:.1%})" if was else f"{name}: unknown"
        )
    for one in tracked:
        context.report.kept[one.group.name] = spans(one.original)
    if not context.calibration:
        context.remark("no calibration inputs: what it cost is unknown")
