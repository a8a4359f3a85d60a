"""The fidelity floor of a recipe: passes are weakened until the outputs stay above it.

All passes run with their options first; if the outputs stay above the floor, that is the result. Otherwise
each pass in turn that falls below it is weakened:

    a pass with a dial (how much is pruned):   bisection between nothing and full strength,
    a pass that works layer by layer:          layers are left unchanged, the most costly first,
    any other pass:                            it is left out.

The measured cost of later passes, up to a quarter of what may be lost, is reserved for them. A pass whose
budget was set explicitly is not weakened: the compilation is refused, with the nearest setting that works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from tersor.errors import InvalidOption
from tersor.ir import Graph
from tersor.pipeline.report import FEW_ROWS, PassReport, Remark
from tersor.pipeline.rewriting import Pass

TRIALS = 5  # Bisections of a dial: to a 32nd of full strength.
MEASURED = 48  # Layers whose cost is measured one by one; more are ordered by their local errors.
RESERVE = 0.25

# (pass, graph, excluded layers, memo) -> (new graph, report)
Run = Callable[[Pass, Graph, frozenset[str], dict[str, Any]], tuple[Graph, PassReport]]
Kept = Callable[[Graph], float | None]


@dataclass
class Stage:
    """A pass of a recipe, the graphs before and after it, and its report."""

    step: Pass
    explicit_budget: bool
    before: Graph
    after: Graph
    report: PassReport
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether it can have cost fidelity."""
        return self.step.keeps.values is None and bool(self.report.rewrites or self.report.kept)


@dataclass(frozen=True)
class Point:
    """One strength of a pass: the graph, its report, the share of the outputs it keeps, and a label."""

    after: Graph
    report: PassReport
    kept: float
    label: str


@dataclass
class FloorSearch:
    """Runs one recipe on one graph under a floor.

    Attributes:
        run: runs a pass.
        kept: the share of the outputs that a graph keeps; None if unknown.
        floor: the least share allowed.
    """

    run: Run
    kept: Kept
    floor: float
    progress: Callable[[int, int, str], None]

    def __call__(
        self, steps: Sequence[Pass], explicit_budgets: Sequence[bool], graph: Graph
    ) -> list[Stage]:
        """Runs the recipe's passes on ``graph``, each as strongly as the floor allows.

        Raises:
            InvalidOption: an explicit budget cannot be met, or only below the floor.
        """
        stages: list[Stage] = []
        for step, explicit in zip(steps, explicit_budgets, strict=True):
            stages.append(self._stage(step, explicit, stages[-1].after if stages else graph))
        kept = self._kept(stages[-1].after) if any(s.counts for s in stages) else None
        if kept is None or kept >= self.floor:
            return stages
        return self._weaken(stages)

    def _stage(self, step: Pass, explicit_budget: bool, before: Graph) -> Stage:
        memo: dict[str, Any] = {}
        after, report = self.run(step, before, frozenset(), memo)
        if not report.shortfall:
            return Stage(step, explicit_budget, before, after, report, memo)
        if explicit_budget:
            raise InvalidOption(f"{step.label}: {report.shortfall}; ask for that, or more")
        # The nearest result removed everything that can be removed: not worth building.
        half = step.weakened(0.5, report.remaining)
        if half is None:
            skipped = PassReport(
                report.name, skips=report.skips, notes=[Remark(f"left out: {report.shortfall}")]
            )
            return Stage(step, explicit_budget, before, before, skipped, memo)
        after, mild = self.run(half, before, frozenset(), memo)
        mild.name = report.name
        why = f"{report.shortfall}: half of what can be removed is, which is {half.label}"
        mild.notes.append(Remark(why))
        return Stage(half, explicit_budget, before, after, mild, memo)

    def _kept(self, graph: Graph) -> float | None:
        self.progress(0, 1, "comparing outputs")
        return self.kept(graph)

    def _weaken(self, stages: list[Stage]) -> list[Stage]:
        """Weakens stages in order, each on the result of those before it."""
        shares = [1.0]
        for stage in stages:
            share = self._kept(stage.after) if stage.counts else shares[-1]
            shares.append(shares[-1] if share is None else share)
        costs = [max(a - b, 0.0) for a, b in pairwise(shares)]
        graph, changed = stages[0].before, False
        done: list[Stage] = []
        for i, stage in enumerate(stages):
            one = self._stage(stage.step, stage.explicit_budget, graph) if changed else stage
            limit = self.floor + min(sum(costs[i + 1 :]), RESERVE * (1 - self.floor))
            share = self._kept(one.after) if changed and one.counts else shares[i + 1]
            if one.counts and share is not None and share < limit:
                one, changed = self._within(one, share, limit), True
            done.append(one)
            graph = one.after
        return done

    # -- one pass ------------------------------------------------------------------------------------

    def _within(self, stage: Stage, kept: float, limit: float) -> Stage:
        """The strongest form of a pass that keeps ``limit``; an explicit budget is refused instead."""
        if stage.step.weakened(0.5, stage.report.remaining) is not None:
            best, nearest = self._by_dial(stage, limit)
        else:
            best, nearest = self._by_layers(stage, limit)
        result = f"keeps {_share(kept)} of the outputs; the floor is {self.floor:g}"
        if stage.explicit_budget:
            point = best or nearest
            near = (
                f"{point.label} keeps {_share(point.kept)}"
                if point is not None
                else "no setting works"
            )
            raise InvalidOption(
                f"{stage.step.label} {result}. Nearest: {near}. Ask for that, give more "
                "calibration inputs, or lower the floor "
                f"(floor={max(int(kept * 100) / 100, 0):g})"
            )
        if best is None:
            near = "" if nearest is None else f"; {nearest.label} keeps {_share(nearest.kept)}"
            report = replace(stage.report, rewrites=0, changed={}, kept={})
            few = [note for note in stage.report.notes if note.method == FEW_ROWS]
            report.notes = [*few, Remark(f"left out: at full strength it {result}{near}")]
            return replace(stage, after=stage.before, report=report)
        report = best.report
        report.name = stage.report.name
        report.skips = list(dict.fromkeys([*stage.report.skips, *report.skips]))
        why = f"at full strength it {result}: stopped at {best.label}, which keeps {_share(best.kept)}"
        report.notes.append(Remark(why))
        return replace(stage, after=best.after, report=report)

    def _by_dial(self, stage: Stage, limit: float) -> tuple[Point | None, Point | None]:
        """(The most that keeps the limit, the nearest that does not)."""
        low, high = 0.0, 1.0
        best: Point | None = None
        nearest: Point | None = None
        for i in range(TRIALS):
            middle = (low + high) / 2
            step = stage.step.weakened(middle, stage.report.remaining)
            assert step is not None
            self.progress(
                i, TRIALS, f"searching for a setting that keeps {self.floor:g}: {step.label}"
            )
            after, report = self.run(step, stage.before, frozenset(), stage.memo)
            if not report.rewrites:
                low = middle
                continue
            point = Point(after, report, self._known(after), step.label)
            if point.kept >= limit:
                best, low = point, middle
            else:
                nearest, high = point, middle
        return best, nearest

    def _by_layers(self, stage: Stage, limit: float) -> tuple[Point | None, Point | None]:
        """(The point with the fewest layers unchanged that keeps the limit, the nearest that does not)."""
        order = self._dearest_first(stage)
        low, high = 0, len(order)
        best: Point | None = None
        nearest: Point | None = None
        while high - low > 1:
            middle = (low + high) // 2
            self.progress(
                low, high, f"searching for layers to leave unchanged: {middle} of {len(order)}"
            )
            point = self._excluding(stage, order[:middle])
            if point.kept >= limit:
                best, high = point, middle
            else:
                nearest, low = point, middle
        return best, nearest

    def _excluding(self, stage: Stage, keys: Sequence[str]) -> Point:
        after, report = self.run(stage.step, stage.before, frozenset(keys), stage.memo)
        names = [stage.report.changed[key][0] for key in keys]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        count = f"{len(keys)} of {len(stage.report.changed)} layers unchanged"
        label = f"{count} ({', '.join(names[:3])}{more})"
        return Point(after, report, self._known(after), label)

    def _dearest_first(self, stage: Stage) -> list[str]:
        """Keys of layers, by how much the outputs lose by each alone."""
        changed = stage.report.changed
        if len(changed) > MEASURED:
            return sorted(changed, key=lambda key: -(changed[key][1] or 0.0))
        kept = {}
        for i, key in enumerate(changed):
            self.progress(i, len(changed), f"measuring the cost of {changed[key][0]}")
            kept[key] = self._excluding(stage, [k for k in changed if k != key]).kept
        return sorted(changed, key=lambda key: kept[key])

    def _known(self, graph: Graph) -> float:
        kept = self.kept(graph)
        return 1.0 if kept is None else kept


def _share(kept: float) -> str:
    return f"{min(kept, 0.9999):.4g}" if kept < 1 else "1"
