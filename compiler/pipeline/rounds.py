"""Groups of passes that run in rounds to a fixed point, since one pass may enable another.

    Repeat([A(), B()])  =  A B A B ... until neither rewrites anything

A pass is skipped if it rewrote nothing when it last ran and no other pass has rewritten anything since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tersor.pipeline.report import PassReport, Remark
from tersor.pipeline.rewriting import Pass

ROUNDS = 20  # Models need 2 to 4.


@dataclass(frozen=True)
class Repeat:
    """Passes and groups that run in order, repeatedly, until none rewrites anything.

    The passes must count their rewrites. After ``rounds`` the group stops, and the report names the passes
    that still rewrote something: they undo each other's work.
    """

    steps: Sequence[Step]
    rounds: int = ROUNDS


Step = Pass | Repeat


def passes_in(steps: Iterable[Step]) -> list[Pass]:
    """The passes of ``steps`` in order, those of a group once."""
    passes: list[Pass] = []
    for step in steps:
        passes += [step] if isinstance(step, Pass) else dict.fromkeys(passes_in(step.steps))
    return passes


@dataclass
class Rounds:
    """Runs one group.

    Attributes:
        run: runs a pass once.
        reports: gets a row for each pass, with all its runs merged.
    """

    run: Callable[[Pass], PassReport]
    reports: list[PassReport]
    _rows: dict[Pass, PassReport] = field(default_factory=dict)
    _rewrote: list[Pass] = field(default_factory=list)  # One entry per run that rewrote something.
    _seen: dict[Pass, int] = field(default_factory=dict)  # Length of _rewrote when a pass last ran.
    _settled: bool = True

    def __call__(self, group: Repeat) -> None:
        before = 0
        for _ in range(group.rounds):
            before = len(self._rewrote)
            for step in group.steps:
                self._step(step)
            if len(self._rewrote) == before or not self._settled:
                return
        self._settled = False
        for one in dict.fromkeys(self._rewrote[before:]):
            why = f"it still changes the graph after {group.rounds} rounds"
            self._rows[one].notes.append(Remark(why))

    def _step(self, step: Step) -> None:
        if isinstance(step, Repeat):
            self(step)
        elif self._seen.get(step) != len(self._rewrote):
            self._seen[step] = len(self._rewrote)
            report = self.run(step)
            if step in self._rows:
                self._rows[step].add(report)
            else:
                self._rows[step] = report
                self.reports.append(report)
            if report.rewrites:
                self._rewrote.append(step)
