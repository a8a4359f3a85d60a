"""What a kernel of attention is made for."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.backends.tvm.kernels import emit


@dataclass(frozen=True)
class Attention:
    """What a kernel is specialized for.

    Attributes:
        heads, kv_heads: of queries, and of keys and values (a divisor of it).
        d, v_d: size of a head of queries and keys, and of values.
        scale: of the scores.
        dtype: that queries, keys and values are held in: ``bfloat16``, ``float32``, or ``int16``: in
            float32, but multiplied as integers.
        layout: of queries and the result: ``hidden`` [batch, length, heads d], ``heads`` [batch, heads,
            length, d]; ``packed``: keys and values lie behind the queries in one tensor [batch, length,
            (heads + kv_heads) d + kv_heads v_d], and the result is ``hidden``.
        kv_layout: of keys and values: ``hidden`` or ``heads``.
        mask: ``bool`` (true: the key counts), ``float32`` (to be added), or empty: there is none.
        axes: those of the mask, the last ones of ``bhqk``; a ``1`` for each that is 1: ``b11k``, ``qk``. One
            that is named may be 1 at run time. Keys beyond the end of the last axis are left out.
        causal: whether a query sees no key behind its position.
        window: how many positions before and behind its own a query sees; -1: all.
        softcap: that scores are capped to; 0: to nothing.
        past: whether the kernel is told a number of keys before the first query.
        lengths: whether it is told how many keys of each batch entry count; the last is the last
            query's.
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
        sizes = f"{self.heads}_{self.kv_heads}_{self.d}_{self.v_d}_{emit.in_name(self.scale)}"
        parts = ["attention", sizes, self.dtype, self.layout]
        parts += [f"kv{self.kv_layout}"] if self.kv_layout != "hidden" else []
        parts += [f"{self.mask}{self.axes}"] if self.mask else []
        parts += [f for f in ("causal", "past", "lengths") if getattr(self, f)]
        if self.window != (-1, -1):
            parts += ["window", *(emit.in_name(w) for w in self.window)]
        parts += ["cap", emit.in_name(self.softcap)] if self.softcap else []
        return "_".join(parts)
