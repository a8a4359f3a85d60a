"""Reports: what was done, what was skipped and why, and what it cost. Unknown is None, never zero."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tersor.errors import size
from tersor.ir import Value
from tersor.numerics.fidelity import Fidelity
from tersor.plain import EXACT

Step = Literal["import", "recipe", "measure", "choose", "judge"]  # Of a compilation.
# The method of a remark about fits to too few rows, which is kept even if the pass is left out.
FEW_ROWS = "few calibration rows"


@dataclass(frozen=True)
class Remark:
    """What a pass did to a layer, why it skipped one, or a remark on the whole graph. Formatted on printing.

    Attributes:
        reason: why, or any other text.
        layer: the layer or node; empty: the whole graph.
        method: what was done, in the pass's own terms: ``rank 3 of 50x24``.
        error: relative error (Frobenius norms), the mean if over several layers; None: unknown.
        of: what the error refers to: ``the weight``.
        before: the error without the change.
        worst: the largest error of several layers.
        bytes: bytes of weights saved; negative if they grew.
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
        text = ", ".join(part for part in parts if part)
        return f"{self.layer}: {text}" if self.layer else text

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
    """One pass over one graph; repeated runs are merged.

    Attributes:
        name: the pass, with its options as ``name{key=value}``.
        seconds: wall time of the pass without verification; not saved, and ignored in comparisons.
        rewrites: number of changes.
        skips: where a rule's pattern matched but it did not apply, and layers left unchanged.
        notes: what was done to single layers, what it cost, and other remarks.
        nodes: node count after the last run that rewrote something, subgraphs included.
        weight_bytes: bytes of all constants then, as encoded.
        max_error: largest absolute difference from the reference on the verification inputs, if the pass
            claims to keep values and that was checked.
        shortfall: why a budget was not met, and the nearest result; empty if it was met, or there is none.
        remaining: the remaining share of what a budget counts; not saved, like ``changed``.
        changed: key of each layer that can be left unchanged -> (its name in messages, its relative error).
        kept: remaining units of each pruned group, by their original indices: ``0-3,5``.
    """

    name: str
    seconds: float | None = field(default=None, compare=False)
    rewrites: int = 0
    skips: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    nodes: int | None = None
    weight_bytes: int | None = None
    max_error: float | None = None
    shortfall: str = ""
    remaining: float | None = field(default=None, compare=False)
    changed: dict[str, tuple[str, float | None]] = field(default_factory=dict, compare=False)
    kept: dict[str, str] = field(default_factory=dict)
    __pydantic_config__ = EXACT

    def add(self, run: PassReport) -> None:
        """Merges another run of the same pass, except for per-layer results."""
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
    """The results of tuning.

    Attributes:
        kernels: a row for each tuned kernel: its ``name``, its ``grain`` (how it divides its work), and
            whether that was ``measured`` now or known before.
        total: number of the model's kernels; more than were tuned if interrupted.
        database: the file of the results; empty if it cannot be written.
        remarks: why kernels were not measured, or results not written.
    """

    kernels: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    database: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        """Whether some kernels were not tuned."""
        return len(self.kernels) < self.total


@dataclass(frozen=True)
class Decision:
    """A decision or remark of one step of a compilation. Formatted on printing.

    Attributes:
        step: the step; ``judge`` compares outputs.
        reason: why, or any other text.
        outcome: of the candidate; empty for remarks. ``unchanged``: the recipe changed nothing; ``refused``:
            it cannot be run; ``slower`` than or ``even`` with the input; ``unmeasured``: whether it is faster
            is unknown.
        candidate: a graph, or how it is built; :data:`INPUT`: the input model.
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
                noise = "is within the noise of two equal models"
                return f"{who} is as fast as the input at {self.at}: {speed} {noise}{why}"
            case "kept":
                return f"kept {who}{why}"
            case "unmeasured":
                return f"not measured{why}; whether it is faster is unknown"
        return self.reason


@dataclass(frozen=True)
class Timing:
    """A paired measurement of two models on one input: medians of their times and of the pairwise speedup of
    the second over the first, with its quartiles."""

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
        sizes: of the input's dynamic dims.
        timing: None if it was not measured.
        refused: why it was not.
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
    """A constant that is decoded because the runtime has no kernel for its encoding.

    Attributes:
        tensor: its name in the lowered graph.
        encoding: its encoding in the graph.
        why: what the runtime has no kernel for.
        bytes: size when decoded.
        loaded: whether it is decoded when the model is loaded; else the file stores it decoded.
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
        """The record of a constant."""
        encoding = constant.encoding
        assert encoding is not None
        count = math.prod(encoding.type.shape) * encoding.type.dtype.numpy.itemsize
        return Decoded(constant.name, encoding.describe(), why, count, loaded)


_TRANSIENT = ("seconds", "remaining", "changed")  # Only used while compiling.


@dataclass
class Report:
    """The whole compilation: passes in order, then the measured candidates.

    ``fidelity``: of the outputs to those of the input model. ``decoded``: compressed constants that had to be
    decoded for the runtime.
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
        """The candidate that was kept, or :data:`INPUT`; None if nothing was measured."""
        return next((d.candidate for d in self.decisions if d.outcome == "kept"), None)

    @property
    def against_input(self) -> list[tuple[Measurement, Timing]]:
        """Measurements against the input model, with their times."""
        rows = [row for row in self.measured if row.against == INPUT]
        return [(row, row.timing) for row in rows if row.timing is not None]

    def say(self, step: Step, reasons: Iterable[str]) -> None:
        """Adds a step's remarks to the decisions."""
        self.decisions += [Decision(step, reason) for reason in reasons]

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest, without times: equal compilations give equal bytes."""
        data = asdict(self)
        for step in data["passes"]:
            for name in _TRANSIENT:
                del step[name]
        return data
