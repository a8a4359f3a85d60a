"""torch modules and exported programs to IR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

import tersor.frontends.torch.converters  # noqa: F401  (registers the converters)
from tersor.errors import InvalidOption, Unsupported
from tersor.frontends.torch.dtypes import array_of
from tersor.frontends.torch.folding import Folded
from tersor.frontends.torch.functionalize import prepare
from tersor.frontends.torch.lowering import Late, Lowering
from tersor.frontends.torch.names import input_names_of, output_names_of, unique
from tersor.frontends.torch.trace import DimNames, trace
from tersor.ir import DType, Graph, Sym, Value
from tersor.ops import TABLE

Examples = Mapping[str, Any] | Sequence[Any] | Any


def import_module(
    module: Any,
    example_inputs: Examples,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of an ``nn.Module`` in evaluation mode.

    Args:
        module: left as it is; a module in training mode is traced in evaluation mode.
        example_inputs: tensors (or numpy arrays): a sequence for the forward's positional arguments,
            a mapping for its arguments by name; nested lists and dicts are flattened.
        dynamic_shapes: as ``torch.export.export`` takes them, in the structure of the inputs; a dim
            may also be given by a name alone (``{"input_ids": {0: "batch", 1: "seq"}}``).
        input_names, output_names: in the order of the flattened inputs and outputs; else the
            forward's argument names, and the keys of what it returns or ``output_0`` ….

    Raises:
        InvalidOption: no examples, an input that is not a tensor, names that do not fit.
        Unsupported: torch.export cannot trace it, or an op has no conversion (it is named).
    """
    program, names = trace(module, example_inputs, dynamic_shapes)
    return _import(program, names, input_names, output_names)


def import_graph_module(
    module: torch.fx.GraphModule,
    example_inputs: Examples,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of a ``torch.fx.GraphModule``, of ``symbolic_trace`` or of an exported program; arguments
    and errors as for :func:`import_module`."""
    if not isinstance(module, torch.fx.GraphModule):
        raise InvalidOption(f"a {type(module).__name__} is not a torch.fx.GraphModule")
    return import_module(
        module,
        example_inputs,
        dynamic_shapes=dynamic_shapes,
        input_names=input_names,
        output_names=output_names,
    )


def import_exported(
    program: torch.export.ExportedProgram,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of a program of ``torch.export.export``; names as for :func:`import_module`.

    Raises:
        InvalidOption: names that do not fit.
        Unsupported: an op has no conversion (it is named), or the program changes state.
    """
    if not isinstance(program, torch.export.ExportedProgram):
        raise InvalidOption(f"a {type(program).__name__} is not a torch.export.ExportedProgram")
    return _import(program, DimNames(), input_names, output_names)


def _import(
    program: Any,
    dim_names: DimNames,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> Graph:
    with torch.no_grad():
        program = prepare(program)
        graph = TABLE.graph("main")
        lowering = Lowering(graph)
        values = _inputs(program, lowering, dim_names, input_names)
        made = lowering.run(program.graph_module, values, Folded(program))
        _outputs(program, lowering, made, output_names)
        lowering.finish()
    return graph


def _inputs(
    program: Any, lowering: Lowering, dim_names: DimNames, names: Sequence[str] | None
) -> dict[Any, Any]:
    """Placeholders: users' inputs become inputs (first, so that they get their names), weights become
    constants when they are read."""
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    users = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    own = input_names_of(program, [s.arg.name for s in users])
    tensors = [
        (name, placeholders[s.arg.name])
        for name, s in zip(own, users, strict=True)
        if isinstance(placeholders[s.arg.name].meta.get("val"), torch.Tensor)
    ]
    chosen = _chosen(names, [name for name, _ in tensors], "input")
    for own_name, node in tensors:
        _name_symbols(lowering, node.meta["val"], own_name, dim_names)
    for (_, node), name in zip(tensors, chosen, strict=True):
        for axis, theirs in _symbols(node.meta["val"]):
            lowering.sizes.name_by_place(theirs, f"{name}_dim{axis}")
    values: dict[Any, Any] = {}
    for (_, node), name in zip(tensors, chosen, strict=True):
        type = lowering.type_of(node.meta["val"])
        values[node] = value = lowering.graph.add_input(name, type)
        for axis, dim in enumerate(type.dims or ()):
            lowering.sizes.found_in(value, axis, dim)
    shared: dict[Any, Late] = {}
    for spec in program.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if node not in values:
            values[node] = _weight(program, lowering, spec, shared)
    return values


def _name_symbols(lowering: Lowering, val: Any, own: str, names: DimNames) -> None:
    """The user's names of an input's dims."""
    for axis, dim in enumerate(map(_size_text, val.shape)):
        if dim.isdecimal():
            names.check_free(own, axis, int(dim))
    for axis, dim in _symbols(val):
        if (given := names.name(own, axis)) is not None:
            lowering.sizes.name(dim, given)


def _symbols(val: Any) -> Iterator[tuple[int, str]]:
    """Axes of a tensor whose size is one symbol of torch's, and that."""
    for axis, dim in enumerate(map(_size_text, val.shape)):
        if dim.isidentifier():
            yield axis, dim


def _size_text(size: Any) -> str:
    # A size that tracing found to be fixed may still be a SymInt, whose expression is the number.
    return str(size if isinstance(size, int) else size.node.expr)


def _weight(program: Any, lowering: Lowering, spec: Any, shared: dict[Any, Late]) -> Any:
    if spec.kind is InputKind.USER_INPUT:
        return getattr(spec.arg, "value", None)
    if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        raise Unsupported(
            f"the program takes {spec.target or spec.arg.name}, a {spec.kind.name.lower()}"
        )
    stored = program.state_dict if spec.target in program.state_dict else program.constants
    tensor = stored[spec.target]
    key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    if tensor.numel() == 0 or key not in shared:
        shared[key] = Late(
            lambda: lowering.constant(array_of(tensor, spec.target), name=spec.target)
        )
    return shared[key]


def _outputs(program: Any, lowering: Lowering, made: Any, names: Sequence[str] | None) -> None:
    """Outputs under their names. Those that are None are left out, and the others keep the names that
    their places give them; ``names`` may be told for all that is returned, or for what is left of it."""
    specs = program.graph_signature.output_specs
    for spec in specs:
        _check_unchanged(spec)
    own = output_names_of(program, len(specs))
    there = [i for i, item in enumerate(made) if item is not None]
    if not there:
        raise Unsupported("the module returns no tensor")
    if names is not None and len(names) == len(specs):
        names = [list(names)[i] for i in there]
    returned = [_returned(lowering, made[i], own[i]) for i in there]
    labels = unique([own[i] for i in there])
    lowering.graph.set_outputs(returned, _chosen(names, labels, "output"))


def _check_unchanged(spec: Any) -> None:
    """Raises:
    Unsupported: an output of the program that is a change of what it was given.
    """
    if spec.kind is OutputKind.USER_INPUT_MUTATION:
        raise Unsupported(
            f"the module changes its input {spec.target!r} in place, which a graph cannot: work on a copy "
            f"({spec.target} = {spec.target}.clone()), and return it where the change is wanted"
        )
    if spec.kind is not OutputKind.USER_OUTPUT:
        raise Unsupported(
            f"the module changes {spec.target!r} while it runs: a graph has no state, make it an input and "
            "an output"
        )


def _returned(lowering: Lowering, item: Any, label: str) -> Value:
    if isinstance(item, Value):
        return item
    if isinstance(item, (bool, int, float, Sym)):
        kinds: dict[type, DType] = {bool: DType.BOOL, float: DType.F32}
        return lowering.value(item, kinds.get(type(item), DType.I64))
    raise Unsupported(f"output {label} is a {type(item).__name__}, not a tensor")


def _chosen(names: Sequence[str] | None, own: list[str], kind: str) -> list[str]:
    if names is None:
        return own
    chosen = list(names)
    if len(chosen) != len(own):
        raise InvalidOption(f"{len(chosen)} {kind} names for {len(own)} {kind}s ({', '.join(own)})")
    if len(set(chosen)) < len(chosen) or not all(chosen):
        raise InvalidOption(f"{kind} names {chosen} must differ and not be empty")
    return chosen
