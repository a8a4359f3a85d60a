"""Runs torch.export on a module, leaving the module as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

from tersor.errors import InvalidOption, TersorError, Unsupported
from tersor.frontends.torch.growing import FEWEST, grown
from tersor.frontends.torch.recurrent import recurrent_as_ops
from tersor.frontends.torch.returned import plain_outputs
from tersor.frontends.torchscript import WHY_NOT


@dataclass
class DimNames:
    """Names that the user gave to dims of inputs, by input name and axis.

    ``ungrown``: why examples of size 1 could not be traced with another size; empty where they were.
    """

    given: dict[tuple[str, int], str] = field(default_factory=dict)
    ungrown: str = ""

    def name(self, input: str, axis: int) -> str | None:
        return self.given.get((input, axis))

    def check_free(self, input: str, axis: int, size: int) -> None:
        """Raises:
        Unsupported: the dim was named, but tracing found that the model takes one size only."""
        if (input, axis) not in self.given:
            return
        label = self.given[input, axis]
        if size < FEWEST and self.ungrown:
            raise Unsupported(
                f"dimension {axis} of {input}, called {label!r}, cannot vary: torch fixes what is of size "
                f"{size} in the examples, and with {FEWEST} in its place the module fails ({self.ungrown}): "
                "give examples with other sizes"
            )
        raise Unsupported(
            f"dimension {axis} of {input}, called {label!r}, cannot vary: the model works for size {size} "
            "only"
        )


def trace(module: Any, example_inputs: Any, dynamic_shapes: Any) -> tuple[Any, DimNames]:
    """The exported program of ``module`` in evaluation mode, and the user's names of dims.

    Raises:
        InvalidOption: no examples, inputs or dynamic shapes that do not fit.
        Unsupported: torch.export cannot trace it.
    """
    if not isinstance(module, torch.nn.Module):
        raise InvalidOption(f"a {type(module).__name__} is not a torch.nn.Module")
    _check_no_script(module)
    args, kwargs = _examples(example_inputs)
    names = DimNames()
    shapes, larger = _dynamic_shapes(module, args, kwargs, dynamic_shapes, names)
    with (
        _evaluating(module),
        recurrent_as_ops(module),
        plain_outputs(module),
        torch.no_grad(),
    ):
        if larger is not None:
            try:
                return _export(module, *larger, shapes), names
            except TersorError as error:
                names.ungrown = str(error).partition(": ")[2] or str(error)
        return _export(module, args, kwargs, shapes), names


def _export(module: Any, args: Any, kwargs: Any, shapes: Any) -> Any:
    try:
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except TersorError:
        raise
    except Exception as error:
        raise Unsupported(f"torch.export cannot trace the module: {_first_line(error)}") from error


def _check_no_script(module: Any) -> None:
    """Raises:
    Unsupported: TorchScript in it, whose code is not Python any more.
    """
    for path, inner in module.named_modules():
        if isinstance(inner, torch.jit.ScriptModule):
            raise Unsupported(f"{path or 'the module'} is {WHY_NOT}")


def _examples(examples: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if examples is None or (isinstance(examples, (Mapping, Sequence)) and not examples):
        raise InvalidOption("a torch module needs example inputs, to trace it with")
    if isinstance(examples, Mapping):
        args, kwargs = (), {str(k): _tensors(v, str(k)) for k, v in examples.items()}
    else:
        items = [examples] if isinstance(examples, (torch.Tensor, np.ndarray)) else list(examples)
        args, kwargs = tuple(_tensors(v, f"input {i}") for i, v in enumerate(items)), {}
    return args, kwargs


def _tensors(tree: Any, name: str) -> Any:
    """``tree`` with arrays as tensors; all leaves must be tensors or None."""

    def leaf(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return torch.from_numpy(np.ascontiguousarray(item).copy())
        if item is None or isinstance(item, torch.Tensor):
            return item
        raise InvalidOption(
            f"{name} holds a {type(item).__name__} ({item!r}): inputs are tensors; wrap the module so that "
            "its forward fixes everything else"
        )

    return pytree.tree_map(leaf, tree)


# -- dynamic shapes --------------------------------------------------------------------------------


def _dynamic_shapes(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, names: DimNames
) -> tuple[Any, tuple[Any, Any] | None]:
    """``shapes`` for torch.export, in the structure of the inputs: names alone become ``Dim.AUTO``; and
    the inputs with open dims of size 1 made larger, None where there are none."""
    if shapes is None:
        return None, None
    order = _parameters(module, args, kwargs)
    given = _by_name(order, shapes)
    inputs = {**dict(zip(order, args, strict=False)), **kwargs}
    for name, tree in inputs.items():
        _collect(name, tree, given.get(name), names)
    replaced = {name: _markers(given.get(name)) for name in inputs}
    larger = {name: grown(tree, given.get(name)) for name, tree in inputs.items()}
    found = replaced if kwargs else tuple(replaced.values())
    if _sizes(larger) == _sizes(inputs):
        return found, None
    places = list(inputs)[: len(args)]
    return found, (tuple(larger[n] for n in places), {n: larger[n] for n in kwargs})


def _sizes(tree: Any) -> list[Any]:
    return [getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(tree)]


def _parameters(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Argument names of ``forward``, a starred one's elements by number."""
    names: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(len(args) - len(names))]
        elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            names.append(parameter.name)
    if len(args) > len(names):
        raise InvalidOption(f"{len(args)} example inputs for {len(names)} arguments of forward")
    return names


def _by_name(order: list[str], shapes: Any) -> dict[str, Any]:
    if isinstance(shapes, Mapping):
        unknown = [str(name) for name in shapes if name not in order]
        if unknown and "kwargs" not in order:
            raise InvalidOption(
                f"dynamic shapes for {', '.join(unknown)}, which forward does not take"
            )
        return dict(shapes)
    return dict(zip(order, shapes, strict=False))


def _collect(name: str, tree: Any, shapes: Any, names: DimNames) -> None:
    """Records the names of dims in ``shapes``, which has the structure of ``tree``."""
    if shapes is None:
        return
    if isinstance(tree, torch.Tensor):
        items = shapes.items() if isinstance(shapes, Mapping) else enumerate(shapes)
        for axis, marker in items:
            label = marker if isinstance(marker, str) else getattr(marker, "__name__", None)
            if label is not None:
                names.given[name, int(axis) % tree.dim()] = label
        return
    keys = tree.keys() if isinstance(tree, Mapping) else range(len(tree))
    for key in keys:
        nested = shapes.get(key) if isinstance(shapes, Mapping) else shapes[key]
        _collect(f"{name}_{key}", tree[key], nested, names)


def _markers(shapes: Any) -> Any:
    """``shapes`` with names as markers that let torch find out the range."""
    if isinstance(shapes, str):
        return Dim.AUTO
    if isinstance(shapes, Mapping):
        return {k: _markers(v) for k, v in shapes.items()}
    if isinstance(shapes, (list, tuple)):
        return type(shapes)([_markers(v) for v in shapes])
    return shapes


# -- around the export -----------------------------------------------------------------------------


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Within it, ``module`` is in evaluation mode; afterwards each submodule is as it was."""
    modes = [(m, m.training) for m in module.modules()]
    for m, _ in modes:
        m.training = False
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A violated constraint is explained in the second line, its first only counts.
    if len(lines) > 1 and lines[0].startswith("Constraints violated"):
        return f"{lines[0].partition('!')[0]}: {lines[1].lstrip('- ')}"
    return lines[0] if lines else type(error).__name__
