"""The specialization of the kernel of attention."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.backends.tvm.kernels import emit


@dataclass(frozen=True)
class Attention:
    """The specialization of a kernel.

    Attributes:
        heads, kv_heads: the number of heads of queries, and of keys and values (a divisor of the former).
        d, v_d: the head size of queries and keys, and of values.
        scale: of the scores.
        dtype: of queries, keys and values: ``bfloat16``, ``float32``, or ``int16`` for operands in float32
            that are multiplied as integers.
        layout: of queries and the result: ``hidden`` [batch, length, heads d], ``heads`` [batch, heads,
            length, d]; ``packed``: queries, keys and values are concatenated in one tensor [batch, length,
            (heads + kv_heads) d + kv_heads v_d], and the result is ``hidden``.
        kv_layout: of keys and values: ``hidden`` or ``heads``.
        mask: ``bool`` (true: the key counts), ``float32`` (added to scores), or empty: no mask.
        axes: of the mask, the last ones of ``bhqk``, with ``1`` for an axis of size 1: ``b11k``, ``qk``. A
            named one may be 1 at run time. Keys beyond the end of the last axis are masked.
        causal: whether a query sees no key after its own position.
        window: how many positions before and after its own a query sees; -1: all.
        softcap: the bound that scores are capped to; 0: not capped.
        past: whether the number of keys before the first query is an operand.
        lengths: whether the number of keys of each batch entry is an operand; its last key is at the
            position of the last query.
    """

    heads: int
    kv_heads: int
    d: int
    v_d: int
    scale: float
    dtype: str = "float32"
    layout: str = "hidden"
    kv_layout: str = "hidden"
    mask: str = ""
    axes: str = ""
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    past: bool = False
    lengths: bool = False

    @property
    def name(self) -> str:
        """Unique among kernels."""
        sizes = f"{self.heads}_{self.kv_heads}_{self.d}_{self.v_d}_{emit.name_part(self.scale)}"
        parts = ["attention", sizes, self.dtype, self.layout]
        parts += [f"kv{self.kv_layout}"] if self.kv_layout != "hidden" else []
        parts += [f"{self.mask}{self.axes}"] if self.mask else []
        parts += [f for f in ("causal", "past", "lengths") if getattr(self, f)]
        if self.window != (-1, -1):
            parts += ["window", *(emit.name_part(w) for w in self.window)]
        parts += ["cap", emit.name_part(self.softcap)] if self.softcap else []
        return "_".join(parts)
