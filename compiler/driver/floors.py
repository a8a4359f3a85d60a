"""A floor under what a recipe costs: it stops at the best point that keeps it, and says where that is.

All passes run as they were asked to; if the outputs still keep what the floor wants, that is the result. Else
passes are gone over in order: one after which too little is kept gets milder,

    a pass with a dial (how much is pruned):   bisection between what was asked and nothing,
    one that takes layer by layer:             layers stay as they were, those that cost most first,
    any other:                                 it is left out,

and what later passes were measured to cost, up to a quarter of what may be lost, is left to them. A pass that
was told how much is to go is not made milder: that is refused, with the nearest point.
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

TRIALS = 5  # Bisections of a dial: a 32nd of what was asked.
MEASURED = 48  # Layers whose cost is measured one by one; of more, their own errors tell.
RESERVE = 0.25

# (pass, graph, spared, memo) -> the graph by it, and its report.
Run = Callable[[Pass, Graph, frozenset[str], dict[str, Any]], tuple[Graph, PassReport]]
Kept = Callable[[Graph], float | None]


@dataclass
class Stage:
    """A pass of a recipe: what it was given, what it made of that, and how."""

    step: Pass
    insists: bool
    before: Graph
    after: Graph
    report: PassReport
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether it can have cost anything."""
        return self.step.keeps.values is None and bool(self.report.rewrites or self.report.kept)


@dataclass(frozen=True)
class Point:
    """How far a pass went: what it made, what that keeps, and how the point is called."""

    after: Graph
    report: PassReport
    kept: float
    label: str


@dataclass
class Floored:
    """One recipe on one graph.

    Attributes:
        run: runs a pass.
        kept: the share that a graph's outputs keep; None where that is unknown.
        floor: what it may not fall below.
    """

    run: Run
    kept: Kept
    floor: float
    tell: Callable[[int, int, str], None]

    def __call__(self, steps: Sequence[Pass], insists: Sequence[bool], graph: Graph) -> list[Stage]:
        """The recipe's passes on ``graph``, no more of each than the floor allows.

        Raises:
            InvalidOption: a budget that was asked for cannot be had, or not above the floor.
        """
        stages: list[Stage] = []
        for step, insisted in zip(steps, insists, strict=True):
            stages.append(self._stage(step, insisted, stages[-1].after if stages else graph))
        kept = self._kept(stages[-1].after) if any(s.counts for s in stages) else None
        if kept is None or kept >= self.floor:
            return stages
        return self._milder(stages)

    def _stage(self, step: Pass, insists: bool, before: Graph) -> Stage:
        memo: dict[str, Any] = {}
        after, report = self.run(step, before, frozenset(), memo)
        if not report.missed:
            return Stage(step, insists, before, after, report, memo)
        if insists:
            raise InvalidOption(f"{step.label}: {report.missed}; ask for that, or more")
        # What was nearest to it left nothing that could go, and no model is built for that.
        half = step.milder(0.5, report.left)
        if half is None:
            gone = PassReport(
                report.name, skips=report.skips, notes=[Remark(f"left out: {report.missed}")]
            )
            return Stage(step, insists, before, before, gone, memo)
        after, mild = self.run(half, before, frozenset(), memo)
        mild.name = report.name
        why = f"{report.missed}: half of what can go goes, which is {half.label}"
        mild.notes.append(Remark(why))
        return Stage(half, insists, before, after, mild, memo)

    def _kept(self, graph: Graph) -> float | None:
        self.tell(0, 1, "comparing outputs")
        return self.kept(graph)

    def _milder(self, stages: list[Stage]) -> list[Stage]:
        """In order, each in view of what was made of those before it."""
        told = [1.0]
        for stage in stages:
            found = self._kept(stage.after) if stage.counts else told[-1]
            told.append(told[-1] if found is None else found)
        costs = [max(a - b, 0.0) for a, b in pairwise(told)]
        graph, changed = stages[0].before, False
        done: list[Stage] = []
        for i, stage in enumerate(stages):
            one = self._stage(stage.step, stage.insists, graph) if changed else stage
            limit = self.floor + min(sum(costs[i + 1 :]), RESERVE * (1 - self.floor))
            found = self._kept(one.after) if changed and one.counts else told[i + 1]
            if one.counts and found is not None and found < limit:
                one, changed = self._within(one, found, limit), True
            done.append(one)
            graph = one.after
        return done

    # -- one pass ------------------------------------------------------------------------------------

    def _within(self, stage: Stage, kept: float, limit: float) -> Stage:
        """As much of a pass as keeps ``limit``; where it was asked for all of it, a refusal."""
        if stage.step.milder(0.5, stage.report.left) is not None:
            best, nearest = self._by_dial(stage, limit)
        else:
            best, nearest = self._by_layers(stage, limit)
        asked = f"keeps {_share(kept)} of the outputs; the floor is {self.floor:g}"
        if stage.insists:
            point = best or nearest
            near = (
                f"{point.label} keeps {_share(point.kept)}" if point is not None else "nothing does"
            )
            raise InvalidOption(
                f"{stage.step.label} {asked}. Nearest to it, {near}: ask for that, give more "
                "calibration inputs, or lower the floor "
                f"(floor={max(int(kept * 100) / 100, 0):g})"
            )
        if best is None:
            near = "" if nearest is None else f"; {nearest.label} keeps {_share(nearest.kept)}"
            report = replace(stage.report, rewrites=0, changed={}, kept={})
            few = [note for note in stage.report.notes if note.method == FEW_ROWS]
            report.notes = [*few, Remark(f"left out: as asked it {asked}{near}")]
            return replace(stage, after=stage.before, report=report)
        report = best.report
        report.name = stage.report.name
        report.skips = list(dict.fromkeys([*stage.report.skips, *report.skips]))
        why = f"as asked it {asked}: stopped at {best.label}, which keeps {_share(best.kept)}"
        report.notes.append(Remark(why))
        return replace(stage, after=best.after, report=report)

    def _by_dial(self, stage: Stage, limit: float) -> tuple[Point | None, Point | None]:
        """(The most that keeps the limit, the nearest that does not)."""
        low, high = 0.0, 1.0
        best: Point | None = None
        nearest: Point | None = None
        for i in range(TRIALS):
            middle = (low + high) / 2
            step = stage.step.milder(middle, stage.report.left)
            assert step is not None
            self.tell(i, TRIALS, f"looking for what keeps {self.floor:g}: {step.label}")
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
        """(With the fewest layers as they were, the nearest that is too little)."""
        order = self._dearest_first(stage)
        low, high = 0, len(order)
        best: Point | None = None
        nearest: Point | None = None
        while high - low > 1:
            middle = (low + high) // 2
            self.tell(low, high, f"looking for layers that have to stay: {middle} of {len(order)}")
            point = self._sparing(stage, order[:middle])
            if point.kept >= limit:
                best, high = point, middle
            else:
                nearest, low = point, middle
        return best, nearest

    def _sparing(self, stage: Stage, keys: Sequence[str]) -> Point:
        after, report = self.run(stage.step, stage.before, frozenset(keys), stage.memo)
        names = [stage.report.changed[key][0] for key in keys]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        count = f"{len(keys)} of {len(stage.report.changed)} layers as they were"
        label = f"{count} ({', '.join(names[:3])}{more})"
        return Point(after, report, self._known(after), label)

    def _dearest_first(self, stage: Stage) -> list[str]:
        """Keys of layers by what the outputs lose by each alone."""
        changed = stage.report.changed
        if len(changed) > MEASURED:
            return sorted(changed, key=lambda key: -(changed[key][1] or 0.0))
        kept = {}
        for i, key in enumerate(changed):
            self.tell(i, len(changed), f"what {changed[key][0]} costs the outputs")
            kept[key] = self._sparing(stage, [k for k in changed if k != key]).kept
        return sorted(changed, key=lambda key: kept[key])

    def _known(self, graph: Graph) -> float:
        found = self.kept(graph)
        return 1.0 if found is None else found


def _share(kept: float) -> str:
    return f"{min(kept, 0.9999):.4g}" if kept < 1 else "1"
