"""The choices that the TVM backend has, and the default of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tersor.backends.tvm.kernels.linear import Grain
from tersor.errors import InvalidModel, InvalidOption
from tersor.plain import EXACT, read_plain
from tersor.target import Target, check_threads


@dataclass(frozen=True)
class Choice:
    """One way to build and run a graph.

    Attributes:
        features: ISA features that the code uses, sorted.
        cores: that it is built for.
        threads: that it runs on; 0: one for each core.
        grains: how tuned kernels divide their work: a kernel's name, then the fields of ``Grain``.
        buckets: sizes that have a function of their own: names and sizes of all open dims.
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

    @staticmethod
    def of(
        target: Target, *, portable: bool = False, buckets: Sequence[Mapping[str, int]] = ()
    ) -> Choice:
        """What the search starts from.

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
        """What the library depends on; the rest is how it is run."""
        return replace(self, threads=0)

    @property
    def label(self) -> str:
        """What differs from the defaults, the target apart; ``default`` where nothing does."""
        default = Choice(self.features, self.cores)
        parts = ["tuned"] if any(g != Grain() for g in self.grain_of().values()) else []
        parts += [f"bucket({sizes_text(sizes)})" for sizes in self.buckets]
        parts += [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name not in ("grains", "buckets")
            and getattr(self, f.name) != getattr(default, f.name)
        ]
        return " ".join(parts) or "default"

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {**asdict(self), "features": list(self.features)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Choice:
        """Reads what :meth:`to_json` writes.

        Raises:
            InvalidModel: it is something else.
        """
        try:
            return read_plain(Choice, data)
        except (ValueError, InvalidOption) as error:
            raise InvalidModel(f"its choice is damaged: {error}") from None

    def but(self, **changes: Any) -> Choice:
        """With some settings changed."""
        return replace(self, **changes)


def sizes_text(sizes: Sequence[tuple[str, int]]) -> str:
    """Sizes as the command line takes them."""
    return ",".join(f"{name}={size}" for name, size in sizes)
