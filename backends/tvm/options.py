"""The options of the TVM backend, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tersor import backend
from tersor.backends.tvm.kernels.linear_spec import Grain
from tersor.errors import InvalidOption
from tersor.plain import EXACT
from tersor.target import Target, check_threads


@dataclass(frozen=True)
class Choice(backend.Choice):
    """One way to build and run a graph.

    Attributes:
        features: ISA features that the code uses, sorted.
        cores: to build for.
        threads: to run on; 0: one per core.
        grains: how tuned kernels divide their work: a kernel's name, then the fields of ``Grain``.
        buckets: sizes with a specialized function: names and sizes of all open dims.
    """

    features: tuple[str, ...] = ()
    cores: int = 1
    threads: int = 0
    grains: tuple[tuple[str, int, int], ...] = ()
    buckets: tuple[tuple[tuple[str, int], ...], ...] = ()
    __pydantic_config__ = EXACT

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_threads(self.cores)

    def grain_of(self) -> dict[str, Grain]:
        """``grains`` by a kernel's name."""
        return {name: Grain(rows, by_columns) for name, rows, by_columns in self.grains}

    @classmethod
    def of(
        cls, target: Target, *, portable: bool = False, buckets: Sequence[Mapping[str, int]] = ()
    ) -> Choice:
        """The default, where the search starts.

        Raises:
            InvalidOption: ``portable``, which a library cannot be; a bucket without sizes.
        """
        if portable:
            raise InvalidOption("only ONNX files can be portable, and runtime tvm builds a library")
        if not all(buckets):
            raise InvalidOption("a bucket needs the size of an open dim")
        distinct = dict.fromkeys(tuple(sorted(sizes.items())) for sizes in buckets)
        return Choice(tuple(sorted(target.features)), target.cores, buckets=tuple(distinct))

    @property
    def built_by(self) -> object:
        """The options that the library depends on; the others are for running it."""
        return replace(self, threads=0)

    @property
    def label(self) -> str:
        """The settings other than the target that differ from the defaults; ``default`` where none does."""
        default = Choice(self.features, self.cores, grains=self.grains, buckets=self.buckets)
        parts = ["tuned"] if any(g != Grain() for g in self.grain_of().values()) else []
        parts += [f"bucket({sizes_text(sizes)})" for sizes in self.buckets]
        return backend.label_of([(self, default)], *parts)

    def replace(self, **changes: object) -> Choice:
        """A copy with some settings changed."""
        values: dict[str, Any] = changes
        return replace(self, **values)


def sizes_text(sizes: Sequence[tuple[str, int]]) -> str:
    """Sizes as the command line takes them."""
    return ",".join(f"{name}={size}" for name, size in sizes)
