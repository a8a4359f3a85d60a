"""Runs torch.export on a module without changing the module."""

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
from tersor.frontends.torch.enlarging import MIN_SIZE, enlarged
from tersor.frontends.torch.outputs import plain_outputs
from tersor.frontends.torch.recurrent import recurrent_as_ops
from tersor.frontends.torchscript import WHY_NOT


@dataclass
class DimNames:
    """The user's names of dims of inputs, by input name and axis.

    ``not_enlarged``: why tracing failed with examples of size 1 enlarged; empty if it did not.
    """

    given: dict[tuple[str, int], str] = field(default_factory=dict)
    not_enlarged: str = ""

    def name(self, input: str, axis: int) -> str | None:
        return self.given.get((input, axis))

    def check_not_named(self, input: str, axis: int, size: int) -> None:
        """Checks a dim that is static in the traced program.

        Raises:
            Unsupported: the user named it, so it should be dynamic.
        """
        if (input, axis) not in self.given:
            return
        dim = f"dim {axis} of {input}, named {self.given[input, axis]!r}, cannot vary"
        if size < MIN_SIZE and self.not_enlarged:
            raise Unsupported(
                f"{dim}: torch treats size {size} in the examples as static, and with size {MIN_SIZE} the "
                f"module fails ({self.not_enlarged}): give examples with other sizes"
            )
        raise Unsupported(f"{dim}: the model works only for size {size}")


def trace(module: Any, example_inputs: Any, dynamic_shapes: Any) -> tuple[Any, DimNames]:
    """The exported program of ``module`` in evaluation mode, and the user's names of dims.

    Raises:
        InvalidOption: no examples, or inputs or dynamic shapes that do not match.
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
                names.not_enlarged = str(error).partition(": ")[2] or str(error)
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
    Unsupported: the module contains TorchScript, which is no longer Python code.
    """
    for path, inner in module.named_modules():
        if isinstance(inner, torch.jit.ScriptModule):
            raise Unsupported(f"{path or 'the module'} is {WHY_NOT}")


def _examples(examples: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if examples is None or (isinstance(examples, (Mapping, Sequence)) and not examples):
        raise InvalidOption("a torch module needs example inputs for tracing")
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
            f"{name} contains a {type(item).__name__} ({item!r}), not a tensor: wrap the module in one whose "
            "forward takes only tensors"
        )

    return pytree.tree_map(leaf, tree)


# -- dynamic shapes --------------------------------------------------------------------------------


def _dynamic_shapes(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, names: DimNames
) -> tuple[Any, tuple[Any, Any] | None]:
    """``shapes`` for torch.export, in the structure of the inputs, with ``Dim.AUTO`` for names; and the
    inputs with dynamic dims of size 1 enlarged, None if there are none. Records the names in ``names``."""
    if shapes is None:
        return None, None
    order = _parameters(module, args)
    given = _by_name(order, shapes)
    inputs = {**dict(zip(order, args, strict=False)), **kwargs}
    for name, tree in inputs.items():
        _collect(name, tree, given.get(name), names)
    markers = {name: _markers(given.get(name)) for name in inputs}
    larger = {name: enlarged(tree, given.get(name)) for name, tree in inputs.items()}
    dynamic = markers if kwargs else tuple(markers.values())
    if _sizes(larger) == _sizes(inputs):
        return dynamic, None
    positional = list(inputs)[: len(args)]
    return dynamic, (tuple(larger[n] for n in positional), {n: larger[n] for n in kwargs})


def _sizes(tree: Any) -> list[Any]:
    return [getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(tree)]


def _parameters(module: Any, args: tuple[Any, ...]) -> list[str]:
    """Parameter names of ``forward``; the elements of a starred one are numbered."""
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
    """``shapes``, with markers in place of names that let torch infer the range."""
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
    """Puts ``module`` into evaluation mode, and at the end each submodule back into its own."""
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
    # A violated constraint is explained in the second line.
    if len(lines) > 1 and lines[0].startswith("Constraints violated"):
        return f"{lines[0].partition('!')[0]}: {lines[1].lstrip('- ')}"
    return lines[0] if lines else type(error).__name__
