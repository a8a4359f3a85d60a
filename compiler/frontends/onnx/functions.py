"""Inlining of a model's local functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import FunctionProto, NodeProto

from tersor.errors import InvalidModel, Unsupported, first_line
from tersor.frontends.onnx.check import check_call, check_functions
from tersor.frontends.onnx.order import sorted_nodes
from tersor.frontends.onnx.walk import all_nodes

MAX_NODES = 1_000_000  # A chain of functions that each call the next twice doubles at every step.
_Key = tuple[str, str, str]


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the bodies of its functions in place of the calls; the model itself if it has none.

    Raises:
        InvalidModel: onnx cannot inline them.
        Unsupported: a function is recursive, or the result would have too many nodes.
    """
    if not model.functions:
        return model
    check_functions(model.functions)
    _check_calls(model)
    _check_growth(model)
    model = _with_sorted_bodies(model)
    import onnx.inliner

    try:
        return onnx.inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:
        raise InvalidModel(
            f"the model's functions cannot be inlined: {first_line(error)}"
        ) from None


def _with_sorted_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the nodes of each function in topological order, which onnx's inliner requires: it
    renames results as it visits them."""
    orders = [sorted_nodes(f.node) for f in model.functions]
    if all(order == sorted(order) for order in orders):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for function, original, order in zip(copy.functions, model.functions, orders, strict=True):
        del function.node[:]
        function.node.extend(original.node[i] for i in order)
    return copy


def _check_calls(model: onnx.ModelProto) -> None:
    functions = {_function_key(f): f for f in model.functions}
    for body in (model.graph.node, *(f.node for f in model.functions)):
        for node in all_nodes(body):
            called = functions.get((node.domain, node.op_type, node.overload))
            if called is not None:
                check_call(node, called)


def _check_growth(model: onnx.ModelProto) -> None:
    """Bounds the number of nodes that inlining would produce, without inlining."""
    functions = {_function_key(f): f for f in model.functions}
    calls = {key: _calls(f.node, functions) for key, f in functions.items()}
    sizes: dict[_Key, int] = {}
    for key in _innermost_first(functions, calls):
        own = sum(1 for _ in all_nodes(functions[key].node))
        sizes[key] = min(own + sum(sizes[k] for k in calls[key]), MAX_NODES + 1)
    total = sum(sizes[k] for k in _calls(model.graph.node, functions))
    if total > MAX_NODES:
        raise Unsupported(
            f"the model's functions expand to more than {MAX_NODES} nodes when inlined: "
            "simplify the model first"
        )


def _innermost_first(
    functions: dict[_Key, FunctionProto], calls: dict[_Key, list[_Key]]
) -> list[_Key]:
    """``functions``, each after those that it calls.

    Raises:
        Unsupported: a function is recursive.
    """
    order: dict[_Key, None] = {}
    for start in functions:
        path: dict[_Key, Iterator[_Key]] = {start: iter(calls[start])}
        while path and start not in order:
            key = next(reversed(path))
            callee = next((k for k in path[key] if k not in order), None)
            if callee is None:
                order[key] = None
                del path[key]
            elif callee in path:
                raise Unsupported(
                    f"function {callee[0]}.{callee[1]} cannot be inlined: it is recursive"
                )
            else:
                path[callee] = iter(calls[callee])
    return list(order)


def _function_key(function: FunctionProto) -> _Key:
    return function.domain, function.name, function.overload


def _calls(nodes: Iterable[NodeProto], functions: dict[_Key, FunctionProto]) -> list[_Key]:
    keys = ((n.domain, n.op_type, n.overload) for n in all_nodes(nodes))
    return [key for key in keys if key in functions]
