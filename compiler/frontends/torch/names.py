"""Names of inputs and outputs, from the parameters of ``forward`` and the structure that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from tersor.frontends.naming import unique


def input_names_of(program: Any, fallback: Sequence[str]) -> list[str]:
    """Names of the flattened inputs: of the parameter, with the keys and positions of nested ones
    (``batch_ids``, ``states_0``). ``fallback``: the tracer's names, in which Python's keywords are
    changed."""
    signature = program.module_call_graph[0].signature
    spec = program.call_spec.in_spec
    leaves = list(range(spec.num_leaves))
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    known = list(signature.forward_arg_names or ()) if signature is not None else []
    positional = known[: len(args)]
    if len(positional) < len(args):
        return unique(list(fallback))
    names: dict[int, str] = {}
    for name, tree in [*zip(positional, args, strict=True), *kwargs.items()]:
        for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
            names[leaf] = "_".join([name, *map(_key, path)])
    return unique([names.get(i, fallback[i]) for i in leaves])


def output_names_of(program: Any, count: int) -> list[str]:
    """Names of the flattened outputs: their keys (``last_hidden_state``), or ``output_0`` …."""
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != count:
        return [f"output_{i}" for i in range(count)]
    tree = pytree.tree_unflatten(list(range(count)), spec)
    names = [""] * count
    for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
        keys = [_key(k) for k in path] or ["0"]
        names[leaf] = "_".join(["output", *keys] if keys[0].isdigit() else keys)
    return names


def _key(key: Any) -> str:
    """An element of a path as text: a dict's key, a field's name or a position."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
