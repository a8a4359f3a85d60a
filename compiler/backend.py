"""The backend interface: a package ``tersor.backends.<runtime>`` builds graphs for a runtime and runs them.

mypy checks the packages that ``tersor.backends`` lists against :class:`Backend`.  A backend accepts only
choices of its own class, which callers get from the backend itself.
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
        """The choice that a search starts from.

        Raises:
            InvalidOption: an option that the runtime does not support.
        """

    @property
    def label(self) -> str:
        """The settings that differ from their defaults; ``default`` where none does."""

    @property
    def built_by(self) -> object:
        """The settings that the built model depends on; the others only affect how it is run."""

    def replace(self, **changes: object) -> Self:
        """A copy with some settings changed."""

    def to_json(self) -> dict[str, object]:
        """Plain data for the manifest."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Reads what :meth:`to_json` writes.

        Raises:
            InvalidModel: the data is not a choice.
        """
        try:
            return read_plain(cls, data)
        except (ValueError, InvalidOption) as error:
            raise InvalidModel(f"its choice is damaged: {error}") from None


def label_of(settings: Sequence[tuple[object, object]], *parts: str) -> str:
    """A choice's label: ``parts``, then ``name=value`` for each setting that is not the default.
    ``settings``: pairs of dataclass instances, (actual, default)."""
    changed = [
        f"{f.name}={getattr(mine, f.name)}"
        for mine, default in settings
        for f in fields(mine)  # type: ignore[arg-type]
        if getattr(mine, f.name) != getattr(default, f.name)
    ]
    return " ".join([*parts, *changed]) or "default"


class Session(Protocol):
    """A model that a runtime has loaded."""

    def run(self, inputs: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            InvalidOption: an input is missing, unknown, or of the wrong type or shape.
        """


C = TypeVar("C", bound=Choice)
Tune: TypeAlias = Callable[
    [Graph, C, Sequence[Sizes], Progress, "Database"], tuple[C, "TuneReport"]
]


class BackendOf(Protocol[C]):
    """A backend whose choices are of the class ``C``.

    Attributes:
        Choice: that class.
        SUFFIX: suffix of the model's file in an artifact.
        KINDS: kinds of targets that it builds for.
        VARIANTS: lossless passes that pay for some graphs only, by the suffix for the graph's name: graphs
            with and without are measured.
        tune: chooses how kernels of a graph divide their work, by measuring; None where the runtime has no
            kernels to tune.
        FASTER_SUMS: for targets that add products in pairs into 16 bits (``Target.saturates_int8``): longer
            sums that kernels of linear layers can use if all sums of a weight fit, the fastest last.
    """

    @property
    def __path__(self) -> Sequence[str]:
        """The folder of its code."""

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
        """Why the runtime has no kernel for ``op`` with constants in these ``encodings`` and activations of
        that form; None if it has one. Without a kernel the constants are decoded, the graph runs."""

    def axes(self, graph: Graph, choice: C, /) -> list[tuple[str, tuple[object, ...]]]:
        """(setting, values to try other than that of ``choice``), the most promising first."""

    def build(
        self, graph: Graph, choice: C | None = None, decoded: list[Decoded] | None = None
    ) -> Built:
        """Builds ``graph``; equal graphs give equal bytes. Constants that are decoded because no kernel
        reads their encoding are appended to ``decoded``.

        Raises:
            Unsupported: nodes or constants that the runtime cannot execute.
            InvalidOption: a choice that does not fit the graph.
        """

    def open_session(
        self, model: Built | Path, choice: C | Mapping[str, object] | None = None
    ) -> Session:
        """Loads a model, to be run under ``choice`` (an object, or its ``to_json``).

        Raises:
            InvalidModel: the runtime rejects the model; its reason, in one line.
        """

    def interface(
        self, model: Path, choice: Mapping[str, object], /
    ) -> tuple[Interface, Interface]:
        """A model's inputs and outputs. Raises InvalidModel as :meth:`open_session`."""

    def examine(self, model: Built, /) -> None:
        """Checks that this machine can run a model of machine code, without running any of it.

        Raises:
            InvalidModel: why it cannot.
        """

    def companions(self, model: Path, /) -> list[str]:
        """Names of the files next to it that a model refers to. Raises InvalidModel: not a model."""

    def check(self) -> list[str]:
        """Builds and runs a model of one node; returns remarks on the installation, one line each.

        Raises:
            TersorError: the installation does not work.
        """


class ReferenceOf(BackendOf[C], Protocol[C]):
    """The reference runtime: it runs input models unchanged, and evaluates graphs for passes.

    Attributes:
        Evaluator: factory of functions that run graphs.
        OPTIMIZERS: parts of the runtime's own optimizer that can be disabled.
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
        """``level`` of the runtime's own optimizer: ``none``, ``basic``, ``extended`` or ``all``."""

    def read_built(self, path: Path, /) -> Built:
        """Reads a model's file and its weights. Raises InvalidModel: not a model."""


Backend: TypeAlias = BackendOf[Choice]
Reference: TypeAlias = ReferenceOf[Choice]
