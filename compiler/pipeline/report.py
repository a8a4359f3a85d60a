"""What was done, what was not and why, and what it cost. Unknown is None, never zero."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tersor.errors import size
from tersor.ir import Value
from tersor.numerics.fidelity import Fidelity
from tersor.plain import EXACT

# The remark of a pass whose fits go by too few rows; it outlives a pass that is left out.
Step = Literal["import", "recipe", "measure", "choose", "judge"]  # Of a compilation.
FEW_ROWS = "few calibration rows"


@dataclass(frozen=True)
class Remark:
    """What a pass did to a layer, why it left one, or what it has to say of the graph. Its text is made where
    it is printed.

    Attributes:
        reason: why, or what else there is to say.
        layer: which one, or which node; empty: of the whole graph.
        method: what was done, in the pass's own terms: ``rank 3 of 50x24``.
        error: what it costs, relative (Frobenius norms); of several layers the mean; None: unknown.
        of: what the error is of: ``the weight``.
        before: the error without it.
        worst: of several layers.
        bytes: how much smaller the weights are by it; below 0: larger.
    """

    reason: str = ""
    layer: str = ""
    method: str = ""
    error: float | None = None
    of: str = ""
    before: float | None = None
    worst: float | None = None
    bytes: int | None = None
    __pydantic_config__ = EXACT

    def __str__(self) -> str:
        parts = (self.method, self._cost(), self.reason, self._gain())
        said = ", ".join(part for part in parts if part)
        return f"{self.layer}: {said}" if self.layer else said

    def _gain(self) -> str:
        if self.bytes is None:
            return ""
        return f"{size(abs(self.bytes))} of weights {'less' if self.bytes >= 0 else 'more'}"

    def _cost(self) -> str:
        if self.error is None:
            return ""
        what = f"relative error of {self.of}" if self.of else "relative error"
        if self.worst is not None:
            return f"{what}: mean {self.error:.4f}, worst {self.worst:.4f}"
        before = "" if self.before is None else f"{self.before:.4f} -> "
        return f"{what} {before}{self.error:.4f}"


@dataclass
class PassReport:
    """One pass over one graph, all its runs together where it was repeated.

    Attributes:
        name: the pass, with its options as ``name{key=value}``.
        seconds: wall time of the pass, verification apart; not saved, and no part of comparisons.
        rewrites: how often it changed something.
        skips: where a rule met its pattern but did not apply, and layers that stay.
        notes: what was done to single layers, what it cost, and other remarks.
        nodes: node count after it, subgraphs included; after the last run that rewrote something.
        weight_bytes: bytes of all constants then, as encoded.
        max_error: largest absolute difference against the reference on the verification inputs, where
            the pass claims values and they were checked.
        missed: why a budget was not met, and what was nearest; empty where it was, or there is none.
        left: the share of what a budget counts that is left; not saved, nor is the next.
        changed: key of each layer that can stay as it is -> (what messages call it, its own relative error).
        kept: which of its units each group that was pruned has left, by their numbers before: ``0-3,5``.
    """

    name: str
    seconds: float | None = field(default=None, compare=False)
    rewrites: int = 0
    skips: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    nodes: int | None = None
    weight_bytes: int | None = None
    max_error: float | None = None
    missed: str = ""
    left: float | None = field(default=None, compare=False)
    changed: dict[str, tuple[str, float | None]] = field(default_factory=dict, compare=False)
    kept: dict[str, str] = field(default_factory=dict)
    __pydantic_config__ = EXACT

    def add(self, run: PassReport) -> None:
        """Adds another run of the same pass, which has no layers of its own to tell of."""
        self.seconds = (self.seconds or 0.0) + (run.seconds or 0.0)
        self.rewrites += run.rewrites
        self.skips = list(dict.fromkeys([*self.skips, *run.skips]))
        self.notes = list(dict.fromkeys([*self.notes, *run.notes]))
        if run.rewrites:
            self.nodes, self.weight_bytes = run.nodes, run.weight_bytes
        errors = [e for e in (self.max_error, run.max_error) if e is not None]
        self.max_error = max(errors, default=None)


@dataclass
class TuneReport:
    """What tuning found.

    Attributes:
        kernels: a row for each kernel that was reached: its ``name``, its ``grain`` (how it divides its
            work), and whether that was ``measured`` now or was known.
        total: kernels that the model has; more than were reached where it was interrupted.
        database: the file that holds the results; empty where it cannot be written.
        remarks: why kernels were not measured, or results not written.
    """

    kernels: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    database: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        """Whether there are kernels that were not reached."""
        return len(self.kernels) < self.total


@dataclass(frozen=True)
class Decision:
    """What one step of a compilation decided, or has to say. Its text is made where it is printed.

    Attributes:
        step: which one; ``judge``: compares outputs.
        reason: why, or what else there is to say.
        outcome: of the candidate; empty: nothing was decided of one. ``unchanged``: the recipe changed
            nothing; ``refused``: it cannot be run; ``slower``, ``even``: than the input, with it;
            ``unmeasured``: whether it is faster is unknown.
        candidate: a graph, or how it is built; :data:`INPUT`: the model that was given.
        at: the sizes that it was measured at.
        speedup: over the input there.
    """

    step: Step
    reason: str = ""
    outcome: Literal["", "unchanged", "refused", "slower", "even", "kept", "unmeasured"] = ""
    candidate: str = ""
    at: str = ""
    speedup: float | None = None
    __pydantic_config__ = EXACT

    def __str__(self) -> str:
        speed = "unknown" if self.speedup is None else f"{self.speedup:.2f}x"
        why = f": {self.reason}" if self.reason else ""
        who = self.candidate
        match self.outcome:
            case "unchanged":
                return f"{who} found nothing to compress{why}"
            case "refused":
                return f"{who} was not kept{why}"
            case "slower":
                return (
                    f"{who} is slower than the input at {self.at} ({speed}) and was not kept{why}"
                )
            case "even":
                noise = "is within what two runs of the same show"
                return f"{who} is as fast as the input at {self.at}: {speed} {noise}{why}"
            case "kept":
                return f"kept {who}{why}"
            case "unmeasured":
                return f"not measured{why}; whether it is faster is unknown"
        return self.reason


@dataclass(frozen=True)
class Timing:
    """Two models in turn on one input: medians of their times, of the speedup of the second over the first
    in each pair, and its quartiles."""

    before_ms: float
    after_ms: float
    speedup: float
    speedup_q1: float
    speedup_q3: float
    pairs: int
    __pydantic_config__ = EXACT


@dataclass(frozen=True)
class Measurement:
    """One candidate on one input.

    Attributes:
        candidate: a graph and how it is built.
        against: :data:`INPUT` or :data:`BEST`.
        sizes: of the input's open dims.
        timing: None: it was not measured.
        refused: why not.
        reused: whether it was measured in an earlier compilation.
    """

    candidate: str
    against: str
    sizes: str = ""
    timing: Timing | None = None
    refused: str = ""
    reused: bool = False
    __pydantic_config__ = EXACT


INPUT = "the input"
BEST = "the best so far"


@dataclass(frozen=True)
class Decoded:
    """A constant that the runtime reads as plain numbers, for want of a kernel that reads it as it is stored.

    Attributes:
        tensor: its name in the graph that was lowered.
        encoding: how it is stored in the graph.
        why: what the runtime has no kernel for.
        bytes: that the numbers take.
        loaded: whether they are computed when the model is loaded, of what its file stores as the graph
            does; else the file holds them.
    """

    tensor: str
    encoding: str
    why: str
    bytes: int
    loaded: bool
    __pydantic_config__ = EXACT

    def __str__(self) -> str:
        when = "when the model is loaded" if self.loaded else "in its file"
        return (
            f"@{self.tensor}, {self.encoding}, is decoded {when} ({size(self.bytes)}): {self.why}"
        )

    @staticmethod
    def of(constant: Value, why: str, *, loaded: bool) -> Decoded:
        """Of a constant with an encoding."""
        held = constant.encoding
        assert held is not None
        count = math.prod(held.type.shape) * held.type.dtype.numpy.itemsize
        return Decoded(constant.name, held.describe(), why, count, loaded)


_PASSING = ("seconds", "left", "changed")  # Of interest while compiling only.


@dataclass
class Report:
    """The whole compilation: passes in order, then the candidates that were measured.

    ``fidelity``: of the outputs against those of the input model. ``decoded``: constants that
    were compressed and that the runtime reads as plain numbers.
    """

    passes: list[PassReport] = field(default_factory=list)
    measured: list[Measurement] = field(default_factory=list)
    fidelity: Fidelity | None = None
    size_before: int | None = None
    size_after: int | None = None
    decisions: list[Decision] = field(default_factory=list)
    decoded: list[Decoded] = field(default_factory=list)
    __pydantic_config__ = EXACT

    @property
    def kept(self) -> str | None:
        """The candidate that was kept, or :data:`INPUT`; None: nothing was measured."""
        return next((d.candidate for d in self.decisions if d.outcome == "kept"), None)

    @property
    def against_input(self) -> list[tuple[Measurement, Timing]]:
        """What was measured against the input model, with its times."""
        rows = [row for row in self.measured if row.against == INPUT]
        return [(row, row.timing) for row in rows if row.timing is not None]

    def say(self, step: Step, reasons: Iterable[str]) -> None:
        """Adds what a step has to say to the decisions."""
        self.decisions += [Decision(step, reason) for reason in reasons]

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest: the same for the same compilation, so without times of passes."""
        data = asdict(self)
        for step in data["passes"]:
            for name in _PASSING:
                del step[name]
        return data
