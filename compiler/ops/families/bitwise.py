"""Bitwise ops. Evaluated by numpy, because torch cannot shift unsigned integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tersor.ops.families._ties import broadcast
from tersor.ops.families.elementwise import broadcast_infer, elementwise_cost
from tersor.ops.opdef import OpDef, Sample, with_traits


def _by_numpy(name: str) -> Callable[..., Any]:
    def call(*operands: Any) -> Any:
        import torch

        return torch.from_numpy(np.asarray(getattr(np, name)(*(x.numpy() for x in operands))))

    return call


def _shift(x: Any, by: Any, *, direction: str) -> Any:
    return _by_numpy("left_shift" if direction == "LEFT" else "right_shift")(x, by)


def _samples(rng: np.random.Generator) -> list[Sample]:
    whole = rng.integers(-(2**31), 2**31, (2, 3, 4))
    return [
        Sample([whole, rng.integers(-99, 99, (3, 1))]),
        Sample([rng.integers(0, 256, (3, 4)).astype(np.uint8), rng.integers(0, 256, 4).astype(np.uint8)]),
    ]  # fmt: skip


def _not_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample([s.inputs[0]]) for s in _samples(rng)]


def _shift_samples(rng: np.random.Generator) -> list[Sample]:
    x, by = rng.integers(0, 200, (2, 3)), rng.integers(0, 7, 3)
    return [
        Sample([x.astype(dtype), by.astype(dtype)], {"direction": direction})
        for direction in ("LEFT", "RIGHT")
        for dtype in (np.uint8, np.uint32, np.uint64)
    ]


def _row(op: str, since: int, torch: Any, samples: Any, **more: Any) -> OpDef:
    return OpDef(op, since=since, infer=broadcast_infer(), torch=torch, cost=elementwise_cost,
                 ties=broadcast, samples=samples, **more)  # fmt: skip


ROWS = with_traits(
    "elementwise",
    [
        _row("BitwiseAnd", 18, _by_numpy("bitwise_and"), _samples, commutative=True),
        _row("BitwiseOr", 18, _by_numpy("bitwise_or"), _samples, commutative=True),
        _row("BitwiseXor", 18, _by_numpy("bitwise_xor"), _samples, commutative=True),
        _row("BitwiseNot", 18, _by_numpy("invert"), _not_samples),
        _row("BitShift", 11, _shift, _shift_samples),
    ],
)
