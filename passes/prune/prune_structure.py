"""Structured pruning: removes heads, neurons, channels and hidden units, which speeds up every runtime.

``tersor.structure`` finds the groups of coupled units by the op table's ties, ``tersor.pruning.amounts``
decides how many units of each group to remove, by a share or a budget, and ``tersor.pruning.ranking`` which,
by second-order costs or a criterion.

With calibration, groups are cut one after the other in graph order, and the layers that read them are
refitted (``tersor.pruning.cutting``).
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
from tersor.pruning.unit_order import sums_only_activations
from tersor.structure import AxisGroup, axis_groups, merge_vectors, split_vectors
from tersor.structure.costs import macs, parameters
from tersor.structure.tracking import Tracked, spans


@dataclass(frozen=True)
class PruneStructure(Selection):
    """Options. One of the first five sets how much to remove (by default nothing):

    ratio: the share of every group's units to remove.
    threshold: remove units that score lower by ``criterion``, where 1 is the mean of the group.
    macs: the share of multiply-adds to keep, at the largest measured sizes.
    parameters: the share of weights to keep.
    latency: the share of the measured time to keep, at the same sizes.

    criterion: importance of a unit: ``obs`` (least squares), or one of ``tersor.pruning.importance``.
    allocation: how to allocate a budget: ``uniform``, the same share of every group; ``global``, by the
        criterion's scores alone; ``greedy``, by losses scaled with each group's effect on the outputs;
        ``exact``, the same by dynamic programming, for latency; ``evolutionary``, greedy and then
        mutations by measured loss.
    reconstruct: refit the layers that read a group.
    inexact: also prune groups that a norm spans (the channels of a residual stream).
    damping: added to the diagonals of least squares, relative to their mean.
    seed: for random choices.

    Scope patterns match the names of groups.
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
        copies = split_vectors(graph)
        groups = self._wanted(graph, context)
        if not self._settings or not groups:
            why = "no amount is set" if groups else "no group of units can be cut"
            context.remark(f"{why}: nothing is pruned")
            merge_vectors(graph, copies)
            return
        before = _sizes_of(graph, context)
        original, tracked = graph.copy(), [Tracked(g) for g in groups]
        ranking = Ranking(
            graph, context, criterion=self.criterion, damping=self.damping, seed=self.seed
        )
        gone = self._amounts(groups, ranking)
        cutting.prune(original, ranking, tracked, gone, reconstruct=self.reconstruct)
        merge_vectors(graph, copies)
        _report(tracked, before, _sizes_of(graph, context), context)

    def _amounts(self, groups: Sequence[AxisGroup], ranking: Ranking) -> list[int]:
        """The number of units to remove from each group."""
        (option,) = self._settings
        if option == "ratio":
            return amounts.by_share(groups, self.ratio)
        if option == "threshold":
            return amounts.by_threshold(groups, ranking, self.threshold)
        budget = amounts.Budget(option, getattr(self, option), self.allocation)
        return amounts.by_budget(groups, ranking, budget)

    def weakened(self, share: float, remaining: float | None) -> PruneStructure | None:
        """A budget that could not be met is relaxed from what was left."""
        if not self._settings:
            return None
        (option,) = self._settings
        value: float = getattr(self, option)
        if option in ("ratio", "threshold"):
            return replace(self, **{option: _rounded(value * share)})  # type: ignore[arg-type]
        most = 1 - max(value, remaining or 0.0)
        if most < WORTH:
            return None
        return replace(self, **{option: _rounded(1 - most * share)})  # type: ignore[arg-type]

    # -- options -----------------------------------------------------------------------------------

    @property
    def _settings(self) -> list[str]:
        """The options that set how much to remove and are not at their default."""
        none = {"ratio": 0.0, "threshold": 0.0, "macs": 1.0, "parameters": 1.0, "latency": 1.0}
        return [name for name, value in none.items() if getattr(self, name) != value]

    def _problem(self) -> str:
        """What is wrong with the options; empty if nothing is."""
        if len(self._settings) > 1:
            return f"set only one of {' and '.join(self._settings)}"
        if not 0 <= self.ratio < 1:
            return f"ratio {self.ratio:g} is not in [0, 1)"
        if not 0 <= self.threshold < float("inf"):
            return f"threshold {self.threshold:g} is not a finite number of at least 0"
        if not 0 < self.damping < float("inf"):
            return f"damping {self.damping:g} is not a finite number above 0"
        for name in ("macs", "parameters", "latency"):
            if not 0 < (share := getattr(self, name)) <= 1:
                return f"{name} {share:g} is not a share to keep, in (0, 1]"
        if self.criterion != "obs" and self.criterion not in CRITERIA:
            known = ["obs", *CRITERIA]
            hint = suggest(self.criterion, known)
            return f"no criterion {self.criterion!r}{hint}; there are {', '.join(known)}"
        if self.allocation == "exact" and self._settings and self._settings != ["latency"]:
            return "allocation exact works for latency only, whose savings add up"
        return ""

    def _check_data(self, context: Context) -> None:
        if "latency" in self._settings and context.latency is None:
            raise InvalidOption(
                f"{self.label}: latency needs a target that can be measured on this machine; macs=… does not"
            )
        if context.calibration and context.evaluate is not None:
            return
        needing = [
            text
            for needed, text in (
                (self.criterion == "obs", "criterion obs (l2 needs none)"),
                (self.reconstruct, "reconstruct (or reconstruct=false)"),
                (
                    self.allocation in ("greedy", "exact", "evolutionary") and self._is_budget,
                    f"allocation {self.allocation} (uniform and global need none)",
                ),
            )
            if needed
        ]
        if needing and self._settings:
            raise InvalidOption(f"{self.label} needs calibration inputs for {'; '.join(needing)}")

    @property
    def _is_budget(self) -> bool:
        return bool({"macs", "parameters", "latency"} & set(self._settings))

    # -- groups ------------------------------------------------------------------------------------

    def _wanted(self, graph: Graph, context: Context) -> list[AxisGroup]:
        """Groups to cut; the report says why others are not."""
        kept = []
        for group in self.chosen(graph, axis_groups(graph), context):
            node = group.links[0].node
            broken = [v for _, v, _ in group.weights(summed=False) if not _finite(v)]
            broken += [v for _, v, _ in group.weights(summed=True) if not _finite(v)]
            if not group.free:
                reason = next(iter(group.pinned.values()))
            elif broken:
                reason = f"{broken[0].name} contains NaN or infinity"
            elif group.inexact and not self.inexact and not sums_only_activations(group):
                reason = group.inexact
            else:
                kept.append(group)
                continue
            context.skip(node, reason, method=f"the {group.units} units of {group.name} stay")
        return kept


WORTH = 0.005  # The least share to remove that is worth a trial.


def _rounded(share: float) -> float:
    return float(f"{share:.3g}") if share < 0.1 else round(share, 3)


def _finite(value: Value) -> bool:
    return bool(np.isfinite(value.numpy()).all())


def _sizes_of(graph: Graph, context: Context) -> tuple[float, float]:
    sizes = budgets.largest_sizes(graph, context.latency)
    return sum(macs(sizes)(graph).values()), sum(parameters(graph).values())


def _report(
    tracked: Sequence[Tracked],
    before: tuple[float, float],
    after: tuple[float, float],
    context: Context,
) -> None:
    for name, was, now in zip(("multiply-adds", "weights"), before, after, strict=True):
        context.remark(
            f"{name}: {now:.4g} of {was:.4g} ({now / was:.1%})" if was else f"{name}: unknown"
        )
    for group in tracked:
        context.report.kept[group.group.name] = spans(group.original)
    if not context.calibration:
        context.remark("no calibration inputs: what it cost is unknown")
