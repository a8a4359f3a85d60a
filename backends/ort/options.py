"""The options of the ONNX Runtime backend, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tersor import backend
from tersor.errors import InvalidOption, suggest
from tersor.plain import EXACT
from tersor.target import Target, check_threads


@dataclass(frozen=True)
class LowerOptions:
    """How fused ops and encodings are lowered for ONNX Runtime.

    Attributes:
        attention: ``unfused``: MatMul, Softmax, MatMul; ``mha``: com.microsoft.MultiHeadAttention.
        skip_norm: ``fused``: com.microsoft.SkipLayerNormalization; ``plain``: Add, then the norm.
        linear: ``matmul``: MatMul and Add; ``gemm``: Gemm on a two-dimensional view, bias inside.
        portable: standard ONNX ops only, so that any runtime can load the file.
        unsigned_weights: int8 weights whose products would overflow on the target are stored as uint8.
    """

    attention: str = "unfused"
    skip_norm: str = "plain"
    linear: str = "matmul"
    portable: bool = False
    unsigned_weights: bool = False
    __pydantic_config__ = EXACT

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise InvalidOption(
                    f"{name} cannot be {value!r}{suggest(value, allowed)}: one of {', '.join(allowed)}"
                )


CHOICES: dict[str, tuple[str, ...]] = {
    "attention": ("unfused", "mha"),
    "skip_norm": ("plain", "fused"),
    "linear": ("matmul", "gemm"),
}


@dataclass(frozen=True)
class SessionOptions:
    """Settings of the ONNX Runtime session.

    Attributes:
        threads: intra-op threads; 0: one per core.
        disabled_optimizers: ONNX Runtime's own graph optimizers to disable.
        spinning: whether idle threads spin (quick to start, but they use CPU time).
    """

    threads: int = 0
    disabled_optimizers: tuple[str, ...] = ()
    spinning: bool = True
    __pydantic_config__ = EXACT

    def __post_init__(self) -> None:
        check_threads(self.threads)


@dataclass(frozen=True)
class Choice(backend.Choice):
    """One way to build and run a graph."""

    lower: LowerOptions = LowerOptions()
    session: SessionOptions = SessionOptions()
    __pydantic_config__ = EXACT

    @classmethod
    def of(
        cls, target: Target, *, portable: bool = False, buckets: Sequence[Mapping[str, int]] = ()
    ) -> Choice:
        """The default, where the search starts; ONNX Runtime detects the processor itself.

        Raises:
            InvalidOption: ``buckets``, which an ONNX file cannot have.
        """
        if buckets:
            raise InvalidOption(
                "buckets are for runtime tvm: runtime ort has one model for all sizes"
            )
        return Choice().replace(portable=portable, unsigned_weights=target.saturates_int8)

    @property
    def built_by(self) -> object:
        """The options that the model depends on; the others are for running it."""
        return self.lower

    @property
    def label(self) -> str:
        """The settings that differ from the defaults; ``default`` where none does."""
        default = Choice()
        return backend.label_of([(self.lower, default.lower), (self.session, default.session)])

    def replace(self, **changes: object) -> Choice:
        """A copy with some settings of either part changed."""
        own = {f.name for f in fields(self.lower)}
        lower: dict[str, Any] = {k: v for k, v in changes.items() if k in own}
        session: dict[str, Any] = {k: v for k, v in changes.items() if k not in own}
        return Choice(replace(self.lower, **lower), replace(self.session, **session))
