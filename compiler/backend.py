"""What a backend is: a package ``tersor.backends.<runtime>`` that builds graphs for a runtime and runs them.

Packages are checked against :class:`Backend` as any object is (``tersor.backends`` names them).  A backend
takes only choices of its own class; who drives it holds one that it got from the backend itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias, TypeVar

import numpy as np

from tersor.built import Built
from tersor.errors import InvalidModel, InvalidOption
from tersor.ir import Encoding, Graph, ValueType
from tersor.numerics.affine import ActivationForm
from tersor.numerics.sums import Sums
from tersor.plain import read_plain
from tersor.target import Target

if TYPE_CHECKING:
    from tersor.pipeline.report import Decoded, TuneReport
    from tersor.pipeline.rewriting import Evaluate
    from tersor.tuning.database import Database

Supports: TypeAlias = Callable[[str, Sequence[Encoding], ActivationForm], str | None]
Sizes = Mapping[str, int]
Progress = Callable[[int, int, str], None]
Interface = Sequence[tuple[str, ValueType]]
"""Names and types of inputs or of outputs, in order."""


class Choice(Protocol):
    """One way to build and run a graph: a frozen dataclass of settings, each with a default."""

    @classmethod
    def of(cls, target: Target, *, portable: bool = False, buckets: Sequence[Sizes] = ()) -> Self:
        """Where a search starts.

        Raises:
            InvalidOption: what the runtime does not have.
        """

    @property
    def label(self) -> str:
        """The settings that differ from their defaults; ``default`` where none does."""

    @property
    def built_by(self) -> object:
        """The part that the built model depends on; the rest is how it is run."""

    def but(self, **changes: object) -> Self:
        """With some settings changed."""

    def to_json(self) -> dict[str, object]:
        """Plain data for the manifest."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Reads what :meth:`to_json` writes.

        Raises:
            InvalidModel: it is something else.
        """
        try:
            return read_plain(cls, data)
        except (ValueError, InvalidOption) as error:
            raise InvalidModel(f"its choice is damaged: {error}") from None


def label_of(settings: Sequence[tuple[object, object]], *parts: str) -> str:
    """A choice's label: ``parts``, then ``name=value`` of what differs between settings and their
    defaults, dataclasses both."""
    told = [
        f"{f.name}={getattr(mine, f.name)}"
        for mine, default in settings
        for f in fields(mine)  # type: ignore[arg-type]
        if getattr(mine, f.name) != getattr(default, f.name)
    ]
    return " ".join([*parts, *told]) or "default"


class Session(Protocol):
    """A model that a runtime has loaded."""

    def run(self, inputs: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            InvalidOption: an input is missing, unknown, or does not fit.
        """


C = TypeVar("C", bound=Choice)
Tune: TypeAlias = Callable[
    [Graph, C, Sequence[Sizes], Progress, "Database"], tuple[C, "TuneReport"]
]


class BackendOf(Protocol[C]):
    """A backend whose choices are of the class ``C``.

    Attributes:
        Choice: that class.
        SUFFIX: of the model's file in an artifact.
        KINDS: of targets that it builds for.
        VARIANTS: lossless passes that may pay in the runtime, and may not, by what a graph with them is
            called: measured both ways.
        tune: chooses how kernels of a graph divide their work, by measuring; None where the runtime has no
            kernels to tune.
        FASTER_SUMS: where the target adds products in pairs into 16 bits (``Target.saturates_int8``): larger
            sums that kernels of linear layers add up there if all of a weight's fit, the fastest last.
    """

    @property
    def __path__(self) -> Sequence[str]:
        """Where its code lies."""

    @property
    def Choice(self) -> type[C]: ...

    @property
    def SUFFIX(self) -> str: ...

    @property
    def KINDS(self) -> tuple[str, ...]: ...

    @property
    def VARIANTS(self) -> Mapping[str, str]: ...

    @property
    def tune(self) -> Tune[C] | None: ...

    @property
    def FASTER_SUMS(self) -> Sequence[Sums]: ...

    def supports(
        self, op: str, encodings: Sequence[Encoding], activations: ActivationForm, /
    ) -> str | None:
        """Why the runtime has no kernel for ``op`` that reads constants as ``encodings`` hold them and
        activations of that form (the graph still runs: what has no kernel is decoded); None where it has
        one."""

    def axes(self, graph: Graph, choice: C, /) -> list[tuple[str, tuple[object, ...]]]:
        """(setting of a choice, its values to try besides that of ``choice``), the most promising first."""

    def build(
        self, graph: Graph, choice: C | None = None, decoded: list[Decoded] | None = None
    ) -> Built:
        """The model of ``graph``; equal graphs give equal bytes. Constants that no kernel reads as they are
        stored are added to ``decoded``.

        Raises:
            Unsupported: nodes or constants that the runtime cannot execute.
            InvalidOption: a choice that the graph cannot have.
        """

    def open_session(
        self, model: Built | Path, choice: C | Mapping[str, object] | None = None
    ) -> Session:
        """Loads a model, to be run as ``choice`` (or what its ``to_json`` gave) says.

        Raises:
            InvalidModel: the runtime does not take the model; its reason, in one line.
        """

    def interface(
        self, model: Path, choice: Mapping[str, object], /
    ) -> tuple[Interface, Interface]:
        """A model's inputs and outputs. Raises InvalidModel as :meth:`open_session`."""

    def examine(self, model: Built, /) -> None:
        """That this machine can run a model of machine code; none of it is run.

        Raises:
            InvalidModel: why it cannot.
        """

    def companions(self, model: Path, /) -> list[str]:
        """Names of the files next to it that a model refers to. Raises InvalidModel: not a model."""

    def check(self) -> list[str]:
        """Builds and runs a model of one node; remarks on the installation, a line each.

        Raises:
            TersorError: it does not work.
        """


class ReferenceOf(BackendOf[C], Protocol[C]):
    """The runtime that runs models as they are given, and the graphs whose values passes want to see.

    Attributes:
        Evaluator: makes what runs graphs.
        OPTIMIZERS: parts of the runtime's own optimizer that a session can leave out.
    """

    @property
    def Evaluator(self) -> Callable[[], Evaluate]: ...

    @property
    def OPTIMIZERS(self) -> tuple[str, ...]: ...

    def open_session(
        self,
        model: Built | Path,
        choice: C | Mapping[str, object] | None = None,
        *,
        level: str = "all",
    ) -> Session:
        """``level``: of the runtime's own optimizer: ``none``, ``basic``, ``extended`` or ``all``."""

    def read_built(self, path: Path, /) -> Built:
        """A model's file, with its weights. Raises InvalidModel: not a model."""


Backend: TypeAlias = BackendOf[Choice]
Reference: TypeAlias = ReferenceOf[Choice]
