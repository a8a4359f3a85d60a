"""Converts what a module returns to containers that torch.export supports."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tersor.errors import Unsupported

_LEAVES = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, int, float, str, type(None))


@contextmanager
def plain_outputs(module: Any) -> Iterator[None]:
    """Temporarily makes ``module`` return plain dicts, which keep the names, in place of dataclasses and of
    instances of other mapping classes."""
    previous = module.__dict__.get("forward")
    original = module.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return _plain(original(*args, **kwargs))

    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if previous is not None:
            module.__dict__["forward"] = previous


def _plain(tree: Any) -> Any:
    """``tree``, with dicts in place of containers that torch does not know.

    Raises:
        Unsupported: an object that may contain tensors in an unknown way.
    """
    return pytree.tree_map(_leaf, tree)


def _leaf(item: Any) -> Any:
    if isinstance(item, _LEAVES):
        return item
    if dataclasses.is_dataclass(item):
        return {f.name: _plain(getattr(item, f.name)) for f in dataclasses.fields(item)}
    if isinstance(item, Mapping):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, SimpleNamespace):
        return {key: _plain(value) for key, value in vars(item).items()}
    name = type(item).__name__
    fix = ", or set config.use_cache to False" if "Cache" in name else ""
    raise Unsupported(
        f"the module returns a {name}, whose tensors are unknown: wrap it in one that returns tensors{fix}"
    )
