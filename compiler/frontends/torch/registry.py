"""The registry of converters, by op name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Converter = Callable[..., Any]
"""``convert(lowering, *args, **kwargs)``, with the op's arguments: tensors as :class:`Value`, sizes as dims.
Returns a Value, a tuple of them for several results, or a dim for a size."""

CONVERTERS: dict[str, Converter] = {}
F = TypeVar("F", bound=Converter)


def converter(*names: str) -> Callable[[F], F]:
    """Registers a function for ops: ``aten.linear.default``, or ``aten.sum`` for all overloads."""

    def register(function: F) -> F:
        for name in names:
            if name in CONVERTERS:
                raise ValueError(f"two converters for {name}")
            CONVERTERS[name] = function
        return function

    return register


def find(target: Any) -> Converter | None:
    """The converter of an fx node's target: of the overload, else of the op, else of the out-of-place op."""
    for name in names_of(target):
        if name in CONVERTERS:
            return CONVERTERS[name]
    return None


def names_of(target: Any) -> list[str]:
    """Names under which a converter of ``target`` may be registered, the most specific first."""
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, rest = str(target).partition(".")
        packet, _, overload = rest.rpartition(".")
        names = [f"{namespace}.{packet}.{overload}", f"{namespace}.{packet}"]
        if is_in_place(target):
            bare = packet.removesuffix("_")
            names += [f"{namespace}.{bare}.{overload}", f"{namespace}.{bare}"]
        return names
    if isinstance(target, torch._ops.HigherOrderOperator):
        return [target.name()]
    name = getattr(target, "__name__", str(target))
    if getattr(operator, name, None) is target:
        return [f"operator.{name}"]
    return [f"{getattr(target, '__module__', '')}.{name}", f"sym.{name}"]


def is_in_place(target: Any) -> bool:
    """Whether an op writes into its first operand (``aten.add_``)."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return False
    first = target._schema.arguments[0].alias_info
    return first is not None and first.is_write and target._schema.name.endswith("_")
